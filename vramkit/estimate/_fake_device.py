"""A pretended CUDA device: torch decides as beside a GPU, without one and without a driver.

``csrc/bind/torch/adapter_fake.cpp`` answers for the device inside torch; what torch asks in Python
is answered here. Everything is as before when the scope ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vramkit import _build
from vramkit.errors import NativeLibraryError, ScopeError, UntraceableError
from vramkit.estimate import _engine, _streams
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._target import Target

# Bits of vramkit_fake_answers().
_GUARD, _CUDA, _CUDNN = 1, 2, 4

_scope_owner = threading.Lock()


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        path = _build.adapter_path("fake")
    except _build.BuildError as err:
        raise NativeLibraryError(f"no pretended CUDA device for this torch: {err}") from err
    library = ctypes.CDLL(str(path))
    library.vramkit_fake_enter.restype = None
    library.vramkit_fake_enter.argtypes = [ctypes.c_int64]
    library.vramkit_fake_leave.restype = ctypes.c_int32
    library.vramkit_fake_answers.restype = ctypes.c_uint32
    library.vramkit_fake_stream.restype = ctypes.c_int64
    library.vramkit_fake_exchange_stream.restype = ctypes.c_int64
    library.vramkit_fake_exchange_stream.argtypes = [ctypes.c_int64]
    _self_test(library)
    return library


def _self_test(library: ctypes.CDLL) -> None:
    """Ask torch itself whether it sees the device, and whether it no longer does afterwards.

    Raises:
        NativeLibraryError: Torch is not told what it should be.
    """
    before = library.vramkit_fake_answers()
    library.vramkit_fake_enter(91900)
    try:
        inside = library.vramkit_fake_answers()
    finally:
        library.vramkit_fake_leave()
    after = library.vramkit_fake_answers()
    if inside != _GUARD | _CUDA | _CUDNN or after != before:
        raise NativeLibraryError(
            f"torch {torch.__version__} does not take the pretended CUDA device (answers {before} "
            f"before, {inside} inside, {after} after): rebuild it by python -m vramkit._build"
        )


@contextlib.contextmanager
def fake_device(target: Target) -> Iterator[None]:
    """Pretend that the target is ``cuda:0``, for the whole process, until the scope ends.

    Only fake tensors can be on it. No other thread may use CUDA meanwhile.

    Raises:
        NativeLibraryError: The native library cannot be built or loaded, or torch ignores it.
        ScopeError: Another estimate is running in this process.
    """
    # FakeTensorMode imports it, and it makes a table of torch.cuda's own functions when it loads.
    importlib.import_module("torch._dynamo")
    library = _library()
    _engine.start()
    if not _scope_owner.acquire(blocking=False):
        raise ScopeError("another estimate is running in this process; run them one by one")
    try:
        library.vramkit_fake_enter(target.cudnn_version)
        _streams.begin(library)
        try:
            with exchanged(torch.cuda, **_answers(target)):
                yield
        finally:
            library.vramkit_fake_leave()
    finally:
        _scope_owner.release()


@contextlib.contextmanager
def patched(thing: Any, **values: Any) -> Iterator[None]:
    """Set attributes for the time of a scope."""
    missing = object()
    before = {name: vars(thing).get(name, missing) for name in values}
    for name, value in values.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is missing:
                delattr(thing, name)
            else:
                setattr(thing, name, value)


@contextlib.contextmanager
def exchanged(module: types.ModuleType, **values: Any) -> Iterator[None]:
    """Set attributes of a module for the time of a scope.

    Code that is imported within the scope may have taken functions by their names, which the scope
    does not know of. After it, these call what the module then has.
    """
    is_open = True

    def of(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **options: Any) -> Any:
            return (function if is_open else getattr(module, name))(*args, **options)

        return stand_in

    functions = (types.FunctionType, functools.partial)
    with patched(
        module,
        **{name: of(name, v) if isinstance(v, functions) else v for name, v in values.items()},
    ):
        try:
            yield
        finally:
            is_open = False


def _answers(target: Target) -> dict[str, Any]:
    """What ``torch.cuda`` says and does; it never starts CUDA."""
    properties = types.SimpleNamespace(
        name=target.title,
        major=target.capability[0],
        minor=target.capability[1],
        total_memory=target.total_bytes,
        multi_processor_count=target.multi_processors,
        max_threads_per_multi_processor=target.threads_per_multi_processor,
        warp_size=32,
        L2_cache_size=target.l2_bytes,
        gcnArchName="",
        is_integrated=0,
        is_multi_gpu_board=0,
    )
    nothing = dict.fromkeys(
        (
            *("synchronize", "empty_cache", "set_device", "_lazy_init", "init", "ipc_collect"),
            *("manual_seed", "manual_seed_all", "seed", "seed_all"),
            *("reset_peak_memory_stats", "reset_max_memory_allocated"),
        ),
        _always(None),
    )
    zero = dict.fromkeys(
        (
            *("memory_allocated", "max_memory_allocated"),
            *("memory_reserved", "max_memory_reserved", "current_device"),
        ),
        _always(0),
    )
    return {
        **nothing,
        **zero,
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), _exchange),
        **_streams.ANSWERS,
        "_initialized": False,
        "is_available": _always(True),
        "is_initialized": _always(False),
        "is_bf16_supported": _always(target.capability >= (8, 0)),
        "is_current_stream_capturing": _always(False),
        "device_count": _always(1),
        "get_device_capability": _always(target.capability),
        "get_device_name": _always(target.title),
        "get_device_properties": _always(properties),
        "mem_get_info": _always((target.total_bytes, target.total_bytes)),
    }


def _exchange(index: int) -> int:
    """Enter or leave ``torch.cuda.device``."""
    if index > 0:
        raise UntraceableError(
            f"{line_of_caller()} uses cuda:{index}, but one GPU is estimated; use cuda:0 there"
        )
    return 0


def _always(value: object) -> Callable[..., Any]:
    return lambda *_args, **_options: value
