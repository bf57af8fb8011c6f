"""Where the native sources are: the checkout's csrc/, or the copy inside an installed package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ._errors import BuildError

_PACKAGE = Path(__file__).resolve().parents[1]
_CORE_LAYERS = ("base", "backend", "pool", "loader", "bind")
_ADAPTER_PREFIX = "adapter_"
_CUDA_MARK = "_cuda"
_HEADERS = ("*.h", "*.cuh")


def library_dir() -> Path:
    """Return the folder of the package that holds the libraries built at install."""
    return _PACKAGE / "_lib"


def source_root() -> Path:
    """Return the folder that holds base/, pool/, ops/, bind/.

    Raises:
        BuildError: Neither the checkout's folder nor the packaged copy is there.
    """
    for candidate in (_PACKAGE.parent / "csrc", _PACKAGE / "_csrc"):
        if (candidate / "bind").is_dir():
            return candidate
    raise BuildError(
        f"vramkit's native sources are missing from {_PACKAGE / '_csrc'}; "
        "install vramkit again: pip install --force-reinstall --no-deps vramkit"
    )


def core_sources(root: Path) -> tuple[Path, ...]:
    """Return the pool core's sources: those of all its layers, without the torch adapters."""
    found = (path for layer in _CORE_LAYERS for path in (root / layer).rglob("*.cpp"))
    return tuple(sorted(path for path in found if not path.name.startswith(_ADAPTER_PREFIX)))


def adapter_sources(root: Path, kind: str) -> tuple[Path, ...]:
    """Return the sources of the allocator adapter for ``kind``, for instance ``cpu``.

    Raises:
        BuildError: There is no such adapter.
    """
    stem = f"{_ADAPTER_PREFIX}{kind}"
    adapters = sorted((root / "bind").rglob(f"{_ADAPTER_PREFIX}*.cpp"))
    main = [path for path in adapters if path.stem == stem]
    if not main:
        known = sorted(path.stem for path in adapters if path.stem.count("_") == 1)
        raise BuildError(
            f"no adapter for {kind!r}: {root / 'bind'} holds no {stem}.cpp; there are {known}"
        )
    # Messages write sizes as the core does; the adapters link to nothing of vramkit.
    sizes = root / "base" / "bytes.cpp"
    return (sizes, *main, *(path for path in adapters if path.stem.startswith(f"{stem}_")))


def ops_cpu_sources(root: Path) -> tuple[Path, ...]:
    """Return the sources of the ops that run on the CPU, and those of the core that they need."""
    ops = (p for p in sorted((root / "ops").rglob("*.cpp")) if _CUDA_MARK not in p.name)
    return (*sorted((root / "base").glob("*.cpp")), *ops)


def table_sources(root: Path) -> tuple[Path, ...]:
    """Return the sources of embedding tables that do not need torch, for the native tests."""
    found = sorted((root / "ops" / "embedding").glob("*.cpp"))
    return tuple(path for path in found if not path.stem.endswith("_ops"))


def ops_cuda_sources(root: Path) -> tuple[Path, ...]:
    """Return the sources of the ops that run on CUDA devices, and those of the core they need."""
    ops = sorted((root / "ops").rglob(f"*{_CUDA_MARK}*.cu"))
    return (*sorted((root / "base").glob("*.cpp")), *ops) if ops else ()


def digest(root: Path, sources: Iterable[Path]) -> str:
    """Return a hash over sources and over every header below ``root``: each can be included."""
    headers = (path for pattern in _HEADERS for path in root.rglob(pattern))
    total = hashlib.sha256()
    for path in sorted({*sources, *headers}):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]
