"""Where the native sources are: the checkout's csrc/, or the copy inside an installed package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ._errors import BuildError

_PACKAGE = Path(__file__).resolve().parents[1]
_CORE_LAYERS = ("base", "backend", "pool", "bind")
_ADAPTER_PREFIX = "adapter_"
_CUDA_MARK = "_cuda"


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
    """Return the pool core's sources: every layer's, without the torch adapters."""
    found = (path for layer in _CORE_LAYERS for path in (root / layer).glob("*.cpp"))
    return tuple(sorted(path for path in found if not path.name.startswith(_ADAPTER_PREFIX)))


def adapter_sources(root: Path, kind: str) -> tuple[Path, ...]:
    """Return the sources of the allocator adapter for ``kind``, for instance ``cpu``.

    Raises:
        BuildError: There is no such adapter.
    """
    path = root / "bind" / f"{_ADAPTER_PREFIX}{kind}.cpp"
    if not path.is_file():
        stems = (each.stem for each in path.parent.glob(f"{_ADAPTER_PREFIX}*.cpp"))
        known = sorted(stem for stem in stems if stem.count("_") == 1)
        raise BuildError(f"no adapter for {kind!r}: {path} does not exist; there are {known}")
    # Messages write sizes as the core's do; the adapters link to nothing of vramkit.
    sizes = root / "base" / "bytes.cpp"
    return (sizes, path, *sorted(path.parent.glob(f"{path.stem}_*.cpp")))


def ops_cpu_sources(root: Path) -> tuple[Path, ...]:
    """Return the sources of the ops that run on the CPU."""
    return tuple(p for p in sorted((root / "ops").glob("*.cpp")) if _CUDA_MARK not in p.name)


def ops_cuda_sources(root: Path) -> tuple[Path, ...]:
    """Return the sources of the ops that run on CUDA devices."""
    return tuple(sorted((root / "ops").glob(f"*{_CUDA_MARK}*.cu")))


def digest(sources: Iterable[Path]) -> str:
    """Return a hash over sources and the headers beside them."""
    files = set(sources)
    files.update(header for path in list(files) for header in path.parent.glob("*.h"))
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.name}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]
