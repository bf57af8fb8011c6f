"""The binding of the pool core (csrc/bind/vramkit.h)."""

from vramkit._core._library import CORE_LIBRARY, library
from vramkit._core._pool import (
    CorePool,
    active_pool,
    close_scope,
    open_outside_scope,
    owner,
)
from vramkit._core._replay import CoreReplay, last_error
from vramkit._core._structs import (
    DEVICE_CPU,
    STATS_FIELDS,
    Block,
    BlockKind,
    BlockState,
    ReplayOp,
    SizeClass,
    StackHook,
    StackText,
    Status,
)

__all__ = [
    "CORE_LIBRARY",
    "DEVICE_CPU",
    "STATS_FIELDS",
    "Block",
    "BlockKind",
    "BlockState",
    "CorePool",
    "CoreReplay",
    "ReplayOp",
    "SizeClass",
    "StackHook",
    "StackText",
    "Status",
    "active_pool",
    "close_scope",
    "last_error",
    "library",
    "open_outside_scope",
    "owner",
]
