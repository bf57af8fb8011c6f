"""Libraries bound to the installed torch: in the package, or compiled into the user's cache."""

from __future__ import annotations

import ctypes
import importlib
import platform
import sys
from functools import cache
from pathlib import Path

from . import _adapters, _cache, _recipes
from ._errors import BuildError
from ._sources import adapter_sources, digest, library_dir, ops_cpu_sources, source_root
from ._torch import Torch, find_torch

_REBUILD = f"{sys.executable} -m vramkit._build"


@cache
def adapter_path(kind: str) -> Path:
    """Return an adapter for the installed torch, building it when there is none.

    Imports torch. The adapter has been asked for its torch version, so it is safe to load.

    Args:
        kind: ``cpu`` or ``cuda`` for an allocator, ``fake`` for a pretended CUDA device, ``node``
            for nodes of autograd.

    Raises:
        BuildError: No compiler, no torch, an unsupported torch, one without CUDA for ``cuda``, or
            an adapter for another torch.
    """
    torch = _installed_torch()
    path = _find_or_build(_adapter(kind, torch))
    check_adapter(path, torch)
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

    From then on they win over the package's, until the package's change.

    Raises:
        BuildError: No compiler, no torch, an unsupported torch, or a cache that others can write to.
    """
    torch = _installed_torch()
    libraries = [*(_adapter(kind, torch) for kind in _adapters.kinds(torch)), _ops_cpu(torch)]
    return [_cache.rebuild(library, library_dir()) for library in libraries]


def _installed_torch() -> Torch:
    torch = find_torch()
    if torch is None:
        raise BuildError(
            "torch is not installed; install it first, for instance: pip install torch"
        )
    return torch


def _adapter(kind: str, torch: Torch) -> _cache.Library:
    root = source_root()
    return _cache.Library(
        name=_recipes.adapter_name(kind, torch.minor),
        key=_key(torch, root, adapter_sources(root, kind)),
        recipe=lambda: _adapters.recipe(root, kind, torch),
    )


def _ops_cpu(torch: Torch) -> _cache.Library:
    root = source_root()
    return _cache.Library(
        name=_recipes.OPS_CPU_LIBRARY,
        key=_key(torch, root, ops_cpu_sources(root)),
        recipe=lambda: _recipes.ops_cpu(root, torch),
    )


def _key(torch: Torch, root: Path, sources: tuple[Path, ...]) -> str:
    # Read late: setup.py loads this file when vramkit itself cannot be imported yet.
    version = importlib.import_module("vramkit").__version__
    return f"{version}-torch{torch.version}-{platform.machine()}-{digest(root, sources)}"


def _find_or_build(library: _cache.Library) -> Path:
    return _cache.find(library, library_dir()) or _cache.compile_once(library)
