"""Libraries bound to the installed torch: found in the package, or built into the user's cache."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from . import _adapters, _recipes
from ._errors import BuildError
from ._objects import Recipe, build, locked
from ._sources import adapter_sources, digest, library_dir, ops_cpu_sources, source_root
from ._torch import Torch, find_torch

_REBUILD = f"{sys.executable} -m vramkit._build"


@dataclass(frozen=True)
class _Library:
    """A library that is bound to a torch; ``recipe`` is asked only when a compiler is needed."""

    name: str
    sources: tuple[Path, ...]
    torch: Torch
    recipe: Callable[[], Recipe]

    def cache_dir(self) -> Path:
        home = os.environ.get("XDG_CACHE_HOME", "").strip()
        base = Path(home) if home else Path.home() / ".cache"
        # Read late: setup.py loads this file when vramkit itself cannot be imported yet.
        version = importlib.import_module("vramkit").__version__
        machine = platform.machine()
        key = f"{version}-torch{self.torch.version}-{machine}-{digest(self.sources)}"
        return base / "vramkit" / key


@cache
def adapter_path(kind: str) -> Path:
    """Return the allocator adapter for the installed torch, building it when there is none.

    Imports torch. The adapter has been asked for its torch version, so it is safe to load.

    Args:
        kind: ``cpu`` or ``cuda``.

    Raises:
        BuildError: No compiler, no torch, an unsupported torch, one without CUDA for ``cuda``, or
            an adapter for another torch.
    """
    library = _adapter(kind, _installed_torch())
    path = _find_or_build(library)
    check_adapter(path, library.torch)
    return path


@cache
def ops_cpu_path() -> Path:
    """Return the library of CPU ops, building it when the package came without.

    Raises:
        BuildError: No compiler, no torch, or an unsupported torch.
    """
    return _find_or_build(_ops_cpu(_installed_torch()))


def check_adapter(path: Path, torch: Torch) -> None:
    """Refuse an adapter that was built for another torch minor version.

    Raises:
        BuildError: The versions differ, or the file cannot be asked.
    """
    advice = f"build one for torch {torch.version} with: {_REBUILD}"
    try:
        ask = ctypes.CDLL(str(path)).vramkit_adapter_torch_version
    except (OSError, AttributeError) as err:
        raise BuildError(
            f"{path} is no adapter that this torch can load ({err}); {advice}"
        ) from err
    ask.restype = ctypes.c_char_p
    built_for = ask().decode()
    if built_for.split(".")[:2] != torch.minor.split("."):
        raise BuildError(f"{path} was built for torch {built_for}; {advice}")


def rebuild() -> list[Path]:
    """Build the adapters and CPU ops for the installed torch anew, into the user's cache.

    Raises:
        BuildError: No compiler, no torch, or an unsupported torch.
    """
    torch = _installed_torch()
    libraries = [*(_adapter(kind, torch) for kind in _adapters.kinds(torch)), _ops_cpu(torch)]
    for library in libraries:
        (library.cache_dir() / library.name).unlink(missing_ok=True)
    return [_build_in_cache(library) for library in libraries]


def _installed_torch() -> Torch:
    torch = find_torch()
    if torch is None:
        raise BuildError(
            "torch is not installed; install it first, for instance: pip install torch"
        )
    return torch


def _adapter(kind: str, torch: Torch) -> _Library:
    root = source_root()
    return _Library(
        name=_recipes.adapter_name(kind, torch.minor),
        sources=adapter_sources(root, kind),
        torch=torch,
        recipe=lambda: _adapters.recipe(root, kind, torch),
    )


def _ops_cpu(torch: Torch) -> _Library:
    root = source_root()
    return _Library(
        name=_recipes.OPS_CPU_LIBRARY,
        sources=ops_cpu_sources(root),
        torch=torch,
        recipe=lambda: _recipes.ops_cpu(root, torch),
    )


def _find_or_build(library: _Library) -> Path:
    """Look into the cache first: what a rebuild leaves there must win over the package's."""
    for folder in (library.cache_dir(), library_dir()):
        if (folder / library.name).is_file():
            return folder / library.name
    return _build_in_cache(library)


def _build_in_cache(library: _Library) -> Path:
    folder = library.cache_dir()
    path = folder / library.name
    try:
        with locked(folder):
            if not path.is_file():
                print(f"vramkit: compiling {path}, once", file=sys.stderr)
                with TemporaryDirectory() as objects:
                    build(library.recipe(), folder, Path(objects))
    except OSError as err:
        raise BuildError(
            f"cannot write to {folder} ({err}); name a writable folder in the variable "
            "XDG_CACHE_HOME, or install vramkit where it can see torch: "
            "pip install --no-build-isolation vramkit"
        ) from err
    return path
