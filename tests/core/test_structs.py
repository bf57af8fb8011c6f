"""The binding against the header: sizes, offsets and values, as a C compiler sees them."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vramkit._core import _library, _structs

HEADER = Path(__file__).parents[2] / "csrc" / "bind" / "c" / "vramkit.h"

STRUCTS = {
    "vramkit_pool_config": _structs.PoolConfig,
    "vramkit_block": _structs.Block,
    "vramkit_stats": _structs.Stats,
    "vramkit_size_class": _structs.SizeClass,
    "vramkit_totals": _structs.Totals,
    "vramkit_segment": _structs.Segment,
    "vramkit_piece": _structs.Piece,
    "vramkit_core_api": _structs.CoreApi,
}
CONSTANTS = {
    "VRAMKIT_ABI_VERSION": _structs.ABI_VERSION,
    "VRAMKIT_DEVICE_CPU": _structs.DEVICE_CPU,
    "VRAMKIT_MAX_DEVICES": _structs.MAX_DEVICES,
    "VRAMKIT_MAX_PERMUTATION": _structs.MAX_PERMUTATION,
    "VRAMKIT_SIZE_CLASSES": _structs.SIZE_CLASSES,
    "VRAMKIT_STREAM_EXTERNAL": _structs.STREAM_EXTERNAL,
    **{f"VRAMKIT_{member.name}": member.value for member in _structs.Status},
    **{f"VRAMKIT_BLOCK_{member.name}": member.value for member in _structs.BlockState},
    **{f"VRAMKIT_BLOCK_{member.name}": member.value for member in _structs.BlockKind},
    **{f"VRAMKIT_REPLAY_{member.name}": member.value for member in _structs.ReplayOp},
}


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture(scope="module")
def header_facts(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Name to number, from a C program that includes the header: so it is plain C as well."""
    lines = []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %ld\\n", (long)sizeof({name}));')
        lines += [
            f'printf("{name}.{field[0]} %ld\\n", (long)offsetof({name}, {field[0]}));'
            for field in struct._fields_
        ]
    lines += [f'printf("{name} %ld\\n", (long){name});' for name in CONSTANTS]
    folder = tmp_path_factory.mktemp("header")
    source, program = folder / "facts.c", folder / "facts"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        f"int main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in printed.splitlines())}


@pytest.mark.parametrize("name", STRUCTS)
def test_layout(header_facts: dict[str, int], name: str) -> None:
    struct = STRUCTS[name]
    assert ctypes.sizeof(struct) == header_facts[name]
    for field in struct._fields_:
        assert getattr(struct, field[0]).offset == header_facts[f"{name}.{field[0]}"]


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(header_facts: dict[str, int], name: str) -> None:
    assert CONSTANTS[name] == header_facts[name]


def _header() -> str:
    return re.sub(r"//.*|^#.*", "", HEADER.read_text(), flags=re.MULTILINE)


def test_every_struct_member_and_constant_of_the_header_is_bound() -> None:
    text = _header()
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}", text, re.DOTALL):
        members = re.findall(r"\(\*(\w+)\)|(\w+);", body)
        fields = [field[0] for field in STRUCTS[name]._fields_]
        assert [first or second for first, second in members] == fields
    enumerators = {
        match
        for body in re.findall(r"enum \w*\s*\{(.*?)\}", text, re.DOTALL)
        for match in re.findall(r"(VRAMKIT_\w+)\s*=", body)
    }
    assert enumerators == set(CONSTANTS)


def test_every_function_of_the_header_is_bound() -> None:
    text = _header()
    declared = re.findall(r"VRAMKIT_API ([\w\s\*]+?)\s*\*?(\w+)\((.*?)\);", text, re.DOTALL)
    status = {name for result, name, _ in declared if result == "vramkit_status"}
    others = {name for result, name, _ in declared if result != "vramkit_status"}
    assert status == set(_library.STATUS_FUNCTIONS)
    assert others == set(_library.OTHER_FUNCTIONS)
    for _, name, parameters in declared:
        count = 0 if parameters == "void" else parameters.count(",") + 1
        bound = (
            _library.STATUS_FUNCTIONS.get(name) or _library.OTHER_FUNCTIONS.get(name, (None, []))[1]
        )
        assert len(bound) == count, name
