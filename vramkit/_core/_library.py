"""Loads libvramkit_core and turns its statuses into exceptions."""

import atexit
import ctypes
import functools
from pathlib import Path
from typing import Any, NoReturn

from vramkit import errors
from vramkit._core import _structs as s
from vramkit._core._checked import Address, Integer

CORE_LIBRARY = Path(__file__).resolve().parent.parent / "_lib" / "libvramkit_core.so"

_POOL = Address("the pool's handle")
_ADDRESS = Address("address")
_SIZE = Integer("size_bytes", ctypes.c_uint64)
_CAPACITY = Integer("capacity_bytes", ctypes.c_uint64)
_STREAM = Integer("stream", ctypes.c_uint64)
_STACK = Integer("stack_id", ctypes.c_uint32)
_FLAGS = Integer("flags", ctypes.c_uint32)
_COUNT = Integer("count", ctypes.c_uint64)
_TOKEN = Integer("token", ctypes.c_uint64)
_DEVICE = Integer("device", ctypes.c_int32)
_GATHERER = Address("the gatherer's handle")
_PLAN = Address("the plan's handle")
_PERMUTATION = Address("the permutation's handle")
_TICKET = Integer("ticket", ctypes.c_uint64)
_OUT_I32 = ctypes.POINTER(ctypes.c_int32)
_OUT_U64 = ctypes.POINTER(ctypes.c_uint64)
_OUT_POINTER = ctypes.POINTER(ctypes.c_void_p)

Arguments = list[type | Integer]

# The arguments of every function that returns a status.
STATUS_FUNCTIONS: dict[str, Arguments] = {
    "vramkit_pool_create": [ctypes.POINTER(s.PoolConfig), _OUT_POINTER],
    "vramkit_pool_close": [_POOL],
    "vramkit_pool_release": [_POOL],
    "vramkit_prepare_exit": [],
    "vramkit_pool_resize": [_POOL, _CAPACITY],
    "vramkit_pool_trim": [_POOL, _OUT_U64],
    "vramkit_pool_check": [_POOL],
    "vramkit_alloc": [
        _POOL,
        _SIZE,
        _STREAM,
        _STACK,
        _OUT_POINTER,
    ],
    "vramkit_free": [_POOL, _ADDRESS, _OUT_U64],
    "vramkit_free_on": [_POOL, _ADDRESS, _STREAM, _OUT_U64],
    "vramkit_record_stream": [_POOL, _ADDRESS, _STREAM],
    "vramkit_declare_external_stream": [_POOL, _STREAM],
    "vramkit_find_block": [_POOL, _ADDRESS, ctypes.POINTER(s.Block)],
    "vramkit_snapshot": [_POOL, ctypes.POINTER(s.Block), _COUNT, _OUT_U64],
    "vramkit_pool_stats": [_POOL, ctypes.POINTER(s.Stats)],
    "vramkit_pool_reset_peaks": [_POOL],
    "vramkit_pool_size_classes": [_POOL, ctypes.POINTER(s.SizeClass)],
    "vramkit_explain": [
        _POOL,
        _SIZE,
        ctypes.c_char_p,
        _COUNT,
        _OUT_U64,
    ],
    "vramkit_scope_open": [_POOL, _DEVICE, _OUT_U64],
    "vramkit_scope_close": [_TOKEN],
    "vramkit_pool_set_stack_hooks": [_POOL, _ADDRESS, _ADDRESS],
    "vramkit_route_alloc": [
        _DEVICE,
        _SIZE,
        _STREAM,
        _FLAGS,
        _OUT_POINTER,
        _OUT_POINTER,
    ],
    "vramkit_route_free": [_ADDRESS, _OUT_U64],
    "vramkit_device_pools": [
        _DEVICE,
        _OUT_POINTER,
        _COUNT,
        _OUT_U64,
    ],
    "vramkit_device_totals": [_DEVICE, ctypes.POINTER(s.Totals)],
    "vramkit_capture_begin": [_DEVICE, _STREAM],
    "vramkit_capture_end": [_DEVICE, _STREAM],
    "vramkit_device_add_peer": [_DEVICE, _DEVICE],
    "vramkit_replay_create": [_POOL, _COUNT, _OUT_POINTER],
    "vramkit_replay_run": [
        _ADDRESS,
        _ADDRESS,
        _ADDRESS,
        _ADDRESS,
        _ADDRESS,
        _COUNT,
        _OUT_U64,
    ],
    "vramkit_stream_copy": [Address("to"), Address("from"), _SIZE],
    "vramkit_gather_plan_create": [ctypes.POINTER(s.Piece), _COUNT, _OUT_POINTER],
    "vramkit_gatherer_create": [Integer("threads", ctypes.c_uint32), _OUT_POINTER],
    "vramkit_gatherer_close": [_GATHERER],
    "vramkit_gatherer_submit": [
        _GATHERER,
        _PLAN,
        _OUT_U64,
        _COUNT,
        _ADDRESS,
        _COUNT,
        _OUT_U64,
    ],
    "vramkit_gatherer_wait": [
        _GATHERER,
        _TICKET,
        Integer("timeout_ns", ctypes.c_int64),
        _OUT_I32,
    ],
    "vramkit_gatherer_done": [_GATHERER, _TICKET, _OUT_I32],
    "vramkit_host_register": [_ADDRESS, _SIZE, _DEVICE, Integer("read_only", ctypes.c_int32)],
    "vramkit_host_unregister": [_ADDRESS],
    "vramkit_copy_to_device": [
        _PLAN,
        _OUT_U64,
        _COUNT,
        _ADDRESS,
        _COUNT,
        _DEVICE,
        _STREAM,
    ],
    "vramkit_permutation_create": [Integer("seed", ctypes.c_uint64), _COUNT, _OUT_POINTER],
    "vramkit_permutation_next": [_PERMUTATION, _ADDRESS, _COUNT],
    "vramkit_fault": [_POOL, ctypes.c_char_p, _COUNT],
    "vramkit_complete_events": [_POOL, _COUNT],
}

# Result type and arguments of the others.
OTHER_FUNCTIONS: dict[str, tuple[type | None, Arguments]] = {
    "vramkit_last_error": (ctypes.c_char_p, []),
    "vramkit_owner": (ctypes.c_void_p, [_ADDRESS]),
    "vramkit_active_pool": (ctypes.c_void_p, [_DEVICE]),
    "vramkit_core": (ctypes.POINTER(s.CoreApi), []),
    "vramkit_replay_destroy": (None, [_ADDRESS]),
    "vramkit_gather_plan_destroy": (None, [_PLAN]),
    "vramkit_gatherer_destroy": (None, [_GATHERER]),
    "vramkit_permutation_destroy": (None, [_PERMUTATION]),
    "vramkit_has_batched_copies": (ctypes.c_int32, []),
}

EXCEPTIONS: dict[s.Status, type[errors.VramkitError]] = {
    s.Status.INVALID_ARGUMENT: errors.InvalidArgumentError,
    s.Status.OUT_OF_MEMORY: errors.PoolOutOfMemoryError,
    s.Status.FOREIGN_POINTER: errors.ForeignPointerError,
    s.Status.DOUBLE_FREE: errors.DoubleFreeError,
    s.Status.CLOSED: errors.PoolClosedError,
    s.Status.BUSY: errors.PoolBusyError,
    s.Status.SYSTEM: errors.SystemCallError,
    s.Status.FORKED: errors.ForkedPoolError,
}


@functools.cache
def library() -> ctypes.CDLL:
    """The core library, loaded at the first call; every call into it releases the GIL.

    Raises:
        NativeLibraryError: It is missing or is of another version than this Python code.
    """
    core = load_library(CORE_LIBRARY)
    # The driver ends with the process: no thread of ours may be inside it then.
    atexit.register(core.vramkit_prepare_exit)
    return core


def load_library(path: Path) -> ctypes.CDLL:
    """Load a core library from ``path`` and declare its functions.

    Raises:
        NativeLibraryError: It is missing or is of another version than this Python code.
    """
    try:
        core = ctypes.CDLL(str(path))
        _declare(core)
    except (OSError, AttributeError) as err:
        raise errors.NativeLibraryError(
            f"cannot load the native core {path}: {err}. In a checkout run 'make build'; for an "
            "installed package run 'pip install --force-reinstall vramkit' with a C++20 compiler"
        ) from err
    version = core.vramkit_core().contents.abi_version
    if version != s.ABI_VERSION:
        raise errors.NativeLibraryError(
            f"the native core {path} has interface version {version}, this Python code needs "
            f"{s.ABI_VERSION}: they are of different vramkit versions. Rebuild with 'make build' "
            "or reinstall vramkit"
        )
    return core


def call(function: str, *arguments: object) -> None:
    """Call a function of the core that returns a status.

    Raises:
        VramkitError: The exception that stands for the status, with the core's text.
        InvalidArgumentError: An integer does not fit its C type.
    """
    status = invoke(function, *arguments)
    if status:
        raise_status(s.Status(status))


def invoke(function: str, *arguments: Any) -> Any:
    """Call any function of the core, with each integer checked; returns its result.

    Raises:
        TypeError: An argument is of the wrong type.
        InvalidArgumentError: An integer does not fit its C type.
    """
    checked = [
        kind.check(argument) if isinstance(kind, Integer) else argument
        for kind, argument in zip(_arguments_of(function), arguments, strict=True)
    ]
    return getattr(library(), function)(*checked)


def _arguments_of(function: str) -> Arguments:
    arguments = STATUS_FUNCTIONS.get(function)
    return OTHER_FUNCTIONS[function][1] if arguments is None else arguments


def raise_status(status: s.Status) -> NoReturn:
    """Raise the exception for a failing status, with this thread's text."""
    text = library().vramkit_last_error() or b"no text"
    raise EXCEPTIONS[status](text.decode(errors="replace"))


def _declare(core: ctypes.CDLL) -> None:
    for name, arguments in STATUS_FUNCTIONS.items():
        _declare_one(core, name, ctypes.c_int, arguments)
    for name, (result, arguments) in OTHER_FUNCTIONS.items():
        _declare_one(core, name, result, arguments)


def _declare_one(core: ctypes.CDLL, name: str, result: type | None, arguments: Arguments) -> None:
    function = getattr(core, name)
    kinds = [kind.kind if isinstance(kind, Integer) else kind for kind in arguments]
    function.restype, function.argtypes = result, kinds
