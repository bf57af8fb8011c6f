"""The binding of the native core (csrc/bind/c/vramkit.h)."""

from vramkit._core._gather import (
    Gatherer,
    Piece,
    Plan,
    Segment,
    has_batched_copies,
    host_register,
    host_unregister,
    stream_copy,
)
from vramkit._core._library import CORE_LIBRARY, library
from vramkit._core._permutation import Permutation
from vramkit._core._pool import (
    CorePool,
    active_pool,
    close_scope,
    is_closed,
    owner,
)
from vramkit._core._python import (
    callback,
    frames,
    natively_entered,
    new_route,
    open_tokens,
    set_library_paths,
    stacks_kept,
)
from vramkit._core._replay import CoreReplay, last_error
from vramkit._core._structs import (
    DEVICE_CPU,
    MAX_PERMUTATION,
    STATS_FIELDS,
    Block,
    BlockKind,
    BlockState,
    ReplayOp,
    SizeClass,
    Status,
)

__all__ = [
    "CORE_LIBRARY",
    "DEVICE_CPU",
    "MAX_PERMUTATION",
    "STATS_FIELDS",
    "Block",
    "BlockKind",
    "BlockState",
    "CorePool",
    "CoreReplay",
    "Gatherer",
    "Permutation",
    "Piece",
    "Plan",
    "ReplayOp",
    "Segment",
    "SizeClass",
    "Status",
    "active_pool",
    "callback",
    "close_scope",
    "frames",
    "has_batched_copies",
    "host_register",
    "host_unregister",
    "is_closed",
    "last_error",
    "library",
    "natively_entered",
    "new_route",
    "open_tokens",
    "owner",
    "set_library_paths",
    "stacks_kept",
    "stream_copy",
]
