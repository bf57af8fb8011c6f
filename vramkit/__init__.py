"""Memory pools and memory budgets for PyTorch tensors.

Importing this package imports neither torch nor a driver. Its names are loaded at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vramkit import cli, errors, pool, simulate, units
    from vramkit.pool import MemoryPool

__version__ = "0.1.0"

__all__ = [
    "MemoryPool",
    "__version__",
    "cli",
    "errors",
    "pool",
    "simulate",
    "units",
]

_SUBMODULES = ("cli", "errors", "pool", "simulate", "units")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"vramkit.{name}")
    if name != "MemoryPool":
        raise AttributeError(f"module 'vramkit' has no attribute {name!r}")
    module = importlib.import_module("vramkit.pool")
    try:
        value = module.MemoryPool
    except AttributeError:
        # A signal handler has interrupted the import: the rest of it cannot run before it returns.
        raise AttributeError(
            "vramkit.MemoryPool is still being imported by the code that this call interrupted; "
            "a program whose signal handlers create pools must use vramkit.MemoryPool once before "
            "it installs them"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
