"""The structs and constants of csrc/bind/c/vramkit.h, for ctypes.

``tests/core/test_structs.py`` compares every size, offset and value with the header.
"""

import ctypes
import enum

from vramkit._core._checked import CheckedStructure

ABI_VERSION = 5
DEVICE_CPU = -1
MAX_DEVICES = 64
MAX_PERMUTATION = 214748363
SIZE_CLASSES = 40
STREAM_EXTERNAL = 1


class Status(enum.IntEnum):
    """``vramkit_status``."""

    OK = 0
    INVALID_ARGUMENT = 1
    OUT_OF_MEMORY = 2
    FOREIGN_POINTER = 3
    DOUBLE_FREE = 4
    CLOSED = 5
    BUSY = 6
    SYSTEM = 7
    FORKED = 8
    NOT_ROUTED = 9


class BlockState(enum.IntEnum):
    """``vramkit_block_state``."""

    LIVE = 0
    FREE = 1
    PENDING = 2


class BlockKind(enum.IntEnum):
    """``vramkit_block_kind``."""

    LARGE = 0
    SMALL = 1
    STITCHED = 2


class ReplayOp(enum.IntEnum):
    """``vramkit_replay_op``."""

    ALLOC = 0
    FREE = 1


class PoolConfig(CheckedStructure):
    """``vramkit_pool_config``."""

    backend: bytes
    label: bytes
    capacity_bytes: int
    page_bytes: int
    overflow_native: int
    debug_checks: int
    _fields_ = (
        ("backend", ctypes.c_char_p),
        ("label", ctypes.c_char_p),
        ("capacity_bytes", ctypes.c_uint64),
        ("page_bytes", ctypes.c_uint64),
        ("overflow_native", ctypes.c_int32),
        ("debug_checks", ctypes.c_int32),
    )


class Block(ctypes.Structure):
    """``vramkit_block``."""

    address: int
    size_bytes: int
    requested_bytes: int
    stream: int
    stack_id: int
    state: int
    kind: int
    reserved: int
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("size_bytes", ctypes.c_uint64),
        ("requested_bytes", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("stack_id", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


STATS_FIELDS = (
    "capacity_bytes",
    "page_bytes",
    "live_bytes",
    "peak_live_bytes",
    "allocated_bytes",
    "peak_allocated_bytes",
    "mapped_bytes",
    "peak_mapped_bytes",
    "held_bytes",
    "free_bytes",
    "largest_free_bytes",
    "largest_stitch_bytes",
    "pending_bytes",
    "live_blocks",
    "peak_live_blocks",
    "allocations",
    "frees",
    "failures",
    "stitched_requests",
    "stitched_pages",
    "alias_hits",
    "mapping_calls",
    "cross_stream_waits",
    "overflow_allocations",
    "overflow_bytes",
    "metadata_bytes",
)


class Stats(ctypes.Structure):
    """``vramkit_stats``."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in STATS_FIELDS)


class SizeClass(ctypes.Structure):
    """``vramkit_size_class``."""

    upper_bytes: int
    live_blocks: int
    live_bytes: int
    allocations: int
    frees: int
    _fields_ = (
        ("upper_bytes", ctypes.c_uint64),
        ("live_blocks", ctypes.c_uint64),
        ("live_bytes", ctypes.c_uint64),
        ("allocations", ctypes.c_uint64),
        ("frees", ctypes.c_uint64),
    )


class Totals(ctypes.Structure):
    """``vramkit_totals``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "allocations",
            "frees",
            "requested_bytes",
            "freed_requested_bytes",
            "allocated_bytes",
            "freed_allocated_bytes",
            "shortages",
        )
    )


class Segment(CheckedStructure):
    """``vramkit_segment``."""

    address: int
    first_row: int
    rows: int
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("first_row", ctypes.c_uint64),
        ("rows", ctypes.c_uint64),
    )


class Piece(CheckedStructure):
    """``vramkit_piece``."""

    segments: "ctypes.Array[Segment]"
    segment_count: int
    row_bytes: int
    row_stride_bytes: int
    _fields_ = (
        ("segments", ctypes.POINTER(Segment)),
        ("segment_count", ctypes.c_uint64),
        ("row_bytes", ctypes.c_uint64),
        ("row_stride_bytes", ctypes.c_uint64),
    )


class CoreApi(ctypes.Structure):
    """``vramkit_core_api``; Python reads its first two members only."""

    abi_version: int
    struct_bytes: int
    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("struct_bytes", ctypes.c_uint32),
        ("last_error", ctypes.c_void_p),
        ("route_alloc", ctypes.c_void_p),
        ("route_free", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("active_pool", ctypes.c_void_p),
        ("record_stream", ctypes.c_void_p),
        ("find_block", ctypes.c_void_p),
        ("pool_stats", ctypes.c_void_p),
        ("snapshot", ctypes.c_void_p),
        ("device_pools", ctypes.c_void_p),
        ("capture_begin", ctypes.c_void_p),
        ("capture_end", ctypes.c_void_p),
        ("device_add_peer", ctypes.c_void_p),
        ("pool_reset_peaks", ctypes.c_void_p),
        ("device_totals", ctypes.c_void_p),
        ("declare_external_stream", ctypes.c_void_p),
    )
