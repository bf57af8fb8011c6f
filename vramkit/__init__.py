"""Memory pools, memory budgets, memory estimates and a data loader for PyTorch.

Importing this package imports neither torch nor a driver. Its names are loaded at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vramkit import cli as cli
    from vramkit import contrib as contrib
    from vramkit import errors as errors
    from vramkit import estimate as estimate
    from vramkit import loader as loader
    from vramkit import nn as nn
    from vramkit import pool as pool
    from vramkit import simulate as simulate
    from vramkit import sparse as sparse
    from vramkit import units as units
    from vramkit.loader import DataLoader
    from vramkit.pool import MemoryPool

__version__ = "0.1.0"

__all__ = [
    "DataLoader",
    "MemoryPool",
    "__version__",
]

_HOMES = {"DataLoader": "vramkit.loader", "MemoryPool": "vramkit.pool"}
# Public too; they resolve without an import of their own.
_SUBMODULES = (
    *("cli", "contrib", "errors", "estimate", "loader", "nn", "pool", "simulate", "sparse"),
    "units",
)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"vramkit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'vramkit' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    try:
        value = getattr(module, name)
    except AttributeError:
        # A signal handler has interrupted the import: the rest of it cannot run before it returns.
        raise AttributeError(
            f"vramkit.{name} is still being imported by the code that this call interrupted; "
            f"a program whose signal handlers use it must use vramkit.{name} once before it "
            "installs them"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
