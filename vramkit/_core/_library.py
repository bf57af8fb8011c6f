"""Loads libvramkit_core and turns its statuses into exceptions."""

import atexit
import ctypes
import functools
from pathlib import Path
from typing import NoReturn

from vramkit import errors
from vramkit._core import _structs as s

CORE_LIBRARY = Path(__file__).resolve().parent.parent / "_lib" / "libvramkit_core.so"

_POOL = ctypes.c_void_p
_OUT_U64 = ctypes.POINTER(ctypes.c_uint64)
_OUT_POINTER = ctypes.POINTER(ctypes.c_void_p)

# The argument types of every function that returns a status.
STATUS_FUNCTIONS: dict[str, list[type]] = {
    "vramkit_pool_create": [ctypes.POINTER(s.PoolConfig), _OUT_POINTER],
    "vramkit_pool_close": [_POOL],
    "vramkit_pool_release": [_POOL],
    "vramkit_prepare_exit": [],
    "vramkit_pool_resize": [_POOL, ctypes.c_uint64],
    "vramkit_pool_trim": [_POOL, _OUT_U64],
    "vramkit_pool_check": [_POOL],
    "vramkit_alloc": [
        _POOL,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_uint32,
        _OUT_POINTER,
    ],
    "vramkit_free": [_POOL, ctypes.c_void_p, _OUT_U64],
    "vramkit_free_on": [_POOL, ctypes.c_void_p, ctypes.c_uint64, _OUT_U64],
    "vramkit_record_stream": [_POOL, ctypes.c_void_p, ctypes.c_uint64],
    "vramkit_declare_short_lived_stream": [_POOL, ctypes.c_uint64],
    "vramkit_find_block": [_POOL, ctypes.c_void_p, ctypes.POINTER(s.Block)],
    "vramkit_snapshot": [_POOL, ctypes.POINTER(s.Block), ctypes.c_uint64, _OUT_U64],
    "vramkit_pool_stats": [_POOL, ctypes.POINTER(s.Stats)],
    "vramkit_pool_reset_peaks": [_POOL],
    "vramkit_pool_size_classes": [_POOL, ctypes.POINTER(s.SizeClass)],
    "vramkit_explain": [
        _POOL,
        ctypes.c_uint64,
        ctypes.c_char_p,
        ctypes.c_uint64,
        _OUT_U64,
    ],
    "vramkit_scope_open": [_POOL, ctypes.c_int32, _OUT_U64],
    "vramkit_scope_close": [ctypes.c_uint64],
    "vramkit_pool_set_stack_hooks": [_POOL, s.StackHook, s.StackText],
    "vramkit_route_alloc": [
        ctypes.c_int32,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_uint32,
        _OUT_POINTER,
        _OUT_POINTER,
    ],
    "vramkit_route_free": [ctypes.c_void_p, _OUT_U64],
    "vramkit_device_pools": [
        ctypes.c_int32,
        _OUT_POINTER,
        ctypes.c_uint64,
        _OUT_U64,
    ],
    "vramkit_device_totals": [ctypes.c_int32, ctypes.POINTER(s.Totals)],
    "vramkit_capture_begin": [ctypes.c_int32, ctypes.c_uint64],
    "vramkit_capture_end": [ctypes.c_int32, ctypes.c_uint64],
    "vramkit_device_add_peer": [ctypes.c_int32, ctypes.c_int32],
    "vramkit_replay_create": [_POOL, ctypes.c_uint64, _OUT_POINTER],
    "vramkit_replay_run": [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint64,
        _OUT_U64,
    ],
    "vramkit_fault": [_POOL, ctypes.c_char_p, ctypes.c_uint64],
    "vramkit_complete_events": [_POOL, ctypes.c_uint64],
}

# Result type and argument types of the others.
OTHER_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "vramkit_last_error": (ctypes.c_char_p, []),
    "vramkit_owner": (ctypes.c_void_p, [ctypes.c_void_p]),
    "vramkit_active_pool": (ctypes.c_void_p, [ctypes.c_int32]),
    "vramkit_core": (ctypes.POINTER(s.CoreApi), []),
    "vramkit_replay_destroy": (None, [ctypes.c_void_p]),
}

_EXCEPTIONS: dict[s.Status, type[errors.VramkitError]] = {
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
    """
    status = getattr(library(), function)(*arguments)
    if status:
        raise_status(s.Status(status))


def raise_status(status: s.Status) -> NoReturn:
    """Raise the exception for a failing status, with this thread's text."""
    text = library().vramkit_last_error() or b"no text"
    raise _EXCEPTIONS[status](text.decode(errors="replace"))


def _declare(core: ctypes.CDLL) -> None:
    for name, arguments in STATUS_FUNCTIONS.items():
        function = getattr(core, name)
        function.restype, function.argtypes = ctypes.c_int, arguments
    for name, (result, arguments) in OTHER_FUNCTIONS.items():
        function = getattr(core, name)
        function.restype, function.argtypes = result, arguments
