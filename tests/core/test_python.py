"""The core's part for Python: its binding against the header, and what it does with objects."""

import ctypes
import re
import shutil
import subprocess
import weakref
from pathlib import Path
from typing import Self

import pytest

from vramkit._core import CorePool, Status, _library, _python, active_pool, natively_entered
from vramkit._core._library import invoke
from vramkit.errors import PoolClosedError

CSRC = Path(__file__).parents[2] / "csrc"


def _header() -> str:
    text = (CSRC / "bind" / "python" / "python.h").read_text(encoding="utf-8")
    return re.sub(r"//.*|^#.*", "", text, flags=re.MULTILINE)


def _members(struct: str) -> list[str]:
    [body] = re.findall(rf"typedef struct {struct} \{{(.*?)\n\}}", _header(), re.DOTALL)
    return [
        first or second for first, second in re.findall(r"\(\*(\w+)\)|(\w+)(?:\[\d+\])?;", body)
    ]


@pytest.mark.parametrize(
    ("struct", "bound"),
    [("vramkit_python_api", _python.PythonApi), ("vramkit_route", _python.Route)],
)
def test_structs_have_the_header_s_members(struct: str, bound: type[ctypes.Structure]) -> None:
    assert [field[0] for field in bound._fields_] == _members(struct)


def test_structs_have_the_header_s_sizes(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    source.write_text(
        '#include <stdio.h>\n#include "bind/python/python.h"\n'
        "int main(void) {\n"
        '  printf("%zu %zu", sizeof(vramkit_python_api), sizeof(vramkit_route));\n'
        "  return 0;\n}\n"
    )
    command = [compiler, "-std=c11", f"-I{CSRC}", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    sizes = [ctypes.sizeof(_python.PythonApi), ctypes.sizeof(_python.Route)]
    assert [int(size) for size in printed.split()] == sizes


def test_every_function_of_the_header_is_bound() -> None:
    declared = set(re.findall(r"VRAMKIT_API [\w\s\*]+?\*?(vramkit_\w+)\(", _header()))
    callbacks = {f"vramkit_python_{name}" for name in _python.CALLBACKS}
    bound = {*_python.FREE_FUNCTIONS, *_python.GIL_FUNCTIONS, *_python.METHODS.values()}
    assert declared == bound | callbacks


def test_every_status_has_a_place_for_its_exception() -> None:
    [count] = re.findall(r"status_errors\[(\d+)\]", _header())
    assert int(count) == len(Status)


def _pool() -> CorePool:
    return CorePool.create(backend="host", label="x", capacity_bytes=4 << 20, page_bytes=65536)


@natively_entered
class _Scope:
    def __init__(self, core: CorePool) -> None:
        self._route = core.route

    def __enter__(self) -> Self:
        """Enter."""
        raise NotImplementedError

    def __exit__(self, *reason: object) -> None:
        """Leave."""
        raise NotImplementedError


def test_the_methods_are_documented_and_belong_to_the_class() -> None:
    assert _Scope.__enter__.__doc__ == "Enter."
    assert _Scope.__exit__.__name__ == "__exit__"
    with pytest.raises(TypeError, match="'_Scope'"):
        _Scope.__enter__(5)  # type: ignore[arg-type]


def test_a_scope_routes_and_ends() -> None:
    core = _pool()
    with _Scope(core) as scope:
        assert isinstance(scope, _Scope)
        assert active_pool() == core.handle
        assert core.open_scopes() == 1
        with scope:
            assert core.open_scopes() == 2
    assert (core.open_scopes(), active_pool()) == (0, 0)


def test_what_has_no_route_cannot_be_entered() -> None:
    scope = _Scope.__new__(_Scope)
    with pytest.raises(AttributeError, match="_route"):
        scope.__enter__()
    scope._route = 5
    with pytest.raises(ValueError, match="PyCapsule"):
        scope.__enter__()
    with pytest.raises(ValueError, match="PyCapsule"):
        scope.__exit__(None, None, None)


def test_a_closed_pool_is_refused() -> None:
    core = _pool()
    core.close()
    with pytest.raises(PoolClosedError, match="the pool is closed; make a new one"):
        _Scope(core).__enter__()


def test_the_capsule_ends_scopes_and_pool() -> None:
    core = _pool()
    _Scope(core).__enter__()
    handle, address = core.handle, core.alloc(1000)
    gone = weakref.ref(core)
    del core
    assert gone() is None
    assert active_pool() == 0
    # A live block keeps the pool.
    assert invoke("vramkit_owner", address) == handle
    _library.call("vramkit_free", handle, address, None)
    assert not invoke("vramkit_owner", address)


def test_the_scopes_of_a_pool_that_lives_can_be_ended() -> None:
    core = _pool()
    for _ in range(3):
        _Scope(core).__enter__()
    assert core.close_scopes() == 3
    assert (core.close_scopes(), active_pool()) == (0, 0)
