"""Small libraries to find, and a process that has looked for none yet."""

from __future__ import annotations

from pathlib import Path

from vramkit._build import _cache, _first_use, _recipes, _toolchain, _torch

_ADAPTER = 'extern "C" const char* vramkit_adapter_torch_version() { return "%s"; }'


def forget() -> None:
    """Forget what a process finds out once, as a new process has."""
    for function in (_first_use.adapter_path, _first_use.ops_cpu_path, _cache.warn_once):
        function.cache_clear()


def adapter_name() -> str:
    """Return the file name of the CPU adapter for the installed torch."""
    torch = _torch.find_torch()
    assert torch is not None
    return _recipes.adapter_name("cpu", torch.minor)


def library(folder: Path, name: str, code: str) -> Path:
    """Compile a library into a folder."""
    source = folder / "made.cpp"
    source.write_text(code)
    flags = ["-shared", "-fPIC", str(source), "-o", str(folder / name)]
    _toolchain.run([_toolchain.find_cxx(), *flags])
    source.unlink()
    return folder / name


def adapter_for(folder: Path, version: str) -> Path:
    """Compile an adapter that says it is for that torch."""
    return library(folder, adapter_name(), _ADAPTER % version)
