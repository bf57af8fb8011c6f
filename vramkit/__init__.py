"""More out of the memory that you have: a memory pool for PyTorch tensors.

Importing this package imports neither torch nor a driver; names load at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vramkit import errors
    from vramkit.errors import (
        CapacityError,
        PoolBusyError,
        PoolClosedError,
        VramkitError,
    )
    from vramkit.loader import DataLoader
    from vramkit.pool import MemoryPool

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "DataLoader",
    "MemoryPool",
    "PoolBusyError",
    "PoolClosedError",
    "VramkitError",
    "__version__",
    "errors",
]

_HOMES = {
    "CapacityError": "vramkit.errors",
    "DataLoader": "vramkit.loader",
    "MemoryPool": "vramkit.pool",
    "PoolBusyError": "vramkit.errors",
    "PoolClosedError": "vramkit.errors",
    "VramkitError": "vramkit.errors",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("vramkit.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'vramkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
