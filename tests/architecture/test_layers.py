"""Folders are layers: a table says what each may include or import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each folder of csrc/ may include besides itself; nested folders belong to the outermost.
_NATIVE_ALLOWED: dict[str, frozenset[str]] = {
    "base": frozenset(),
    "backend": frozenset({"base"}),
    "pool": frozenset({"base", "backend"}),
    "loader": frozenset({"base", "backend"}),
    "ops": frozenset({"base", "backend", "pool", "loader"}),
    "bind": frozenset({"base", "backend", "pool", "loader", "ops"}),
}

# What each module or package of vramkit/ may import besides itself.
_FOUNDATION = frozenset({"_build", "errors", "units"})
_NATIVE = _FOUNDATION | {"_ops", "_core"}
# These know nothing of each other, so that each can be understood, used and dropped alone.
_SIBLINGS = ("loader", "nn", "estimate", "monitor", "doctor", "distributed", "sparse")
_PYTHON_ALLOWED: dict[str, frozenset[str]] = {
    "_build": frozenset(),
    "errors": frozenset(),
    "units": frozenset({"errors"}),
    "_ops": _FOUNDATION,
    "_core": _FOUNDATION,
    "pool": _NATIVE,
    "simulate": _NATIVE | {"pool"},
    **dict.fromkeys(_SIBLINGS, _NATIVE | {"pool"}),
    "estimate": _NATIVE | {"pool", "simulate"},
    "contrib": _NATIVE | {"nn"},
    "cli": _NATIVE | {"pool", "simulate", *_SIBLINGS},
}
# The entrances may lead anywhere.
_PYTHON_ROOTS = ("__init__", "__main__")

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
_TORCH = re.compile(r"^(torch|c10|ATen)/")
_CUDA = re.compile(r"^(cuda|c10/cuda|cub/|thrust/|cooperative_groups|nv/|driver_types\.h)")


def native_violations(path: str, text: str) -> list[str]:
    """Return what the includes of ``<layer>/<file>`` break."""
    layer, _, name = path.partition("/")
    if layer not in _NATIVE_ALLOWED:
        return [f"{path}: {layer} is no layer; there are {sorted(_NATIVE_ALLOWED)}"]
    found = []
    for quote, header in _INCLUDE.findall(text):
        found += [f"{path}: {why}" for why in _include_faults(layer, name, quote, header)]
    return found


def _include_faults(layer: str, name: str, quote: str, header: str) -> Iterable[str]:
    other = header.partition("/")[0]
    if quote == '"' and other not in _NATIVE_ALLOWED:
        yield f'"{header}" must be spelled from csrc/, as "<layer>/<file>"'
    elif quote == '"' and other not in _NATIVE_ALLOWED[layer] | {layer}:
        yield f"{layer} may not include {header}"
    if header == "Python.h" and layer != "bind":
        yield "Python.h belongs to bind/ only"
    if _TORCH.match(header) and layer != "ops" and not Path(name).name.startswith("adapter_"):
        yield f"{header}: torch's headers belong to ops/ and bind/torch/adapter_* only"
    if _CUDA.match(header) and "_cuda" not in Path(name).name:
        yield f"{header}: CUDA's headers belong to *_cuda* files only"


def python_violations(module: str, text: str) -> list[str]:
    """Return what the imports of a module like ``vramkit.pool._scopes`` break."""
    own = module.split(".")[1] if "." in module else "__init__"
    if own in _PYTHON_ROOTS:
        return []
    if own not in _PYTHON_ALLOWED:
        return [f"{module}: {own} has no layer; name it in {Path(__file__).name}"]
    used = {name.split(".")[1] for name in _own_imports(module, text) if "." in name}
    forbidden = used - _PYTHON_ALLOWED[own] - {own}
    return [f"{module}: may not use {other}" for other in sorted(forbidden)]


def _own_imports(module: str, text: str) -> Iterable[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("vramkit."))
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            if base == "vramkit":
                # `from vramkit import MemoryPool` names an attribute, and reaches as far up.
                names = (name.name for name in node.names)
                yield from (f"vramkit.{name}" for name in names if name != "__version__")
            elif base.startswith("vramkit."):
                yield base


def _python_modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted((ROOT / "vramkit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        # A package counts as its own __init__, so that its relative imports count from it.
        found.append((".".join(parts), path))
    return found


def test_native_layers() -> None:
    files = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file()]
    assert len(files) > 20
    found = []
    for path in files:
        name = path.relative_to(ROOT / "csrc").as_posix()
        found += native_violations(name, path.read_text(encoding="utf-8"))
    assert found == []


def test_python_layers() -> None:
    modules = _python_modules()
    assert len(modules) > 10
    found = []
    for module, path in modules:
        found += python_violations(module, path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(
    ("path", "line", "reason"),
    [
        ("base/a.h", '#include "pool/engine.h"', "base may not include pool/engine.h"),
        ("pool/a.cpp", '#include "bind/c/vramkit.h"', "pool may not include bind/c/vramkit.h"),
        ("pool/a.cpp", '#include "engine.h"', "must be spelled from csrc/"),
        ("ops/a.cpp", "#include <Python.h>", "Python.h belongs to bind/ only"),
        ("bind/api.cpp", "#include <c10/core/Allocator.h>", "torch's headers belong"),
        ("pool/a.cpp", "  #  include <torch/torch.h>", "torch's headers belong"),
        ("backend/host.cpp", "#include <cuda.h>", "CUDA's headers belong"),
        ("ops/testing/pattern.cpp", "#include <cuda_runtime_api.h>", "CUDA's headers belong"),
        ("loader/a.cpp", '#include "pool/pool.h"', "loader may not include pool/pool.h"),
        ("pool/place/a.cpp", '#include "loader/ring.h"', "pool may not include loader/ring.h"),
        ("ops/conv/a.cpp", "#include <cuda_runtime_api.h>", "CUDA's headers belong"),
        ("extra/a.cpp", "", "extra is no layer"),
    ],
)
def test_the_native_guard_sees(path: str, line: str, reason: str) -> None:
    [found] = native_violations(path, f"#include <vector>\n{line}\n")
    assert reason in found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("bind/torch/adapter_cpu.cpp", "#include <c10/core/Allocator.h>"),
        ("backend/device_cuda.cpp", "#include <cuda.h>"),
        ("pool/a.cpp", '#include "base/bytes.h"'),
        ("pool/place/a.cpp", '#include "pool/place/b.h"'),
    ],
)
def test_the_native_guard_allows(path: str, line: str) -> None:
    assert native_violations(path, line) == []


@pytest.mark.parametrize(
    ("module", "line", "used"),
    [
        ("vramkit.units", "from vramkit.pool import MemoryPool", "pool"),
        ("vramkit.pool._scopes", "import vramkit.cli", "cli"),
        ("vramkit.pool._scopes", "from ..simulate import load", "simulate"),
        ("vramkit._core.__init__", "from vramkit import simulate", "simulate"),
        ("vramkit.errors", "def f():\n    from vramkit.units import mib", "units"),
        ("vramkit.simulate._replay", "from vramkit import MemoryPool", "MemoryPool"),
        ("vramkit.loader._fetch", "from vramkit.nn import functional", "nn"),
        ("vramkit.estimate._trace", "import vramkit.loader", "loader"),
    ],
)
def test_the_python_guard_sees(module: str, line: str, used: str) -> None:
    assert python_violations(module, line) == [f"{module}: may not use {used}"]


def test_the_python_guard_asks_for_a_layer() -> None:
    [found] = python_violations("vramkit.novel", "")
    assert "novel has no layer" in found


def test_the_python_guard_allows_what_stands_below() -> None:
    text = "from vramkit import errors\nfrom . import _stacks\nfrom .._core import library\n"
    assert python_violations("vramkit.pool._memory_pool", text) == []
