"""Memory for RMM and CuPy, with stand-ins for both: streams, ends, and what is missing."""

import collections
import functools
import gc
import signal
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from vramkit import MemoryPool
from vramkit._core import CorePool
from vramkit.errors import InvalidArgumentError, PoolOutOfMemoryError, UnsupportedDeviceError
from vramkit.pool import _interop
from vramkit.pool._interop import cupy_allocator, rmm_resource

MIB = 1 << 20


@pytest.fixture
def core() -> CorePool:
    """A pool of 8 MiB on which recorded events stay incomplete."""
    return CorePool.create(
        backend="memfd+late_events", label="cuda:3", capacity_bytes=8 * MIB, page_bytes=65536
    )


class _Stream:
    def __init__(self, handle: int) -> None:
        self.ptr = handle
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.ptr)


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    return module


@pytest.fixture
def rmm(monkeypatch: pytest.MonkeyPatch) -> None:
    def resource(allocate: Callable[..., int], free: Callable[..., None]) -> tuple[Any, Any]:
        return allocate, free

    _interop.rmm_module.cache_clear()
    mr = types.SimpleNamespace(CallbackMemoryResource=resource)
    monkeypatch.setitem(sys.modules, "rmm", _module("rmm", mr=mr))


def test_rmm_allocates_and_frees(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    address = allocate(3 * MIB, _Stream(0))
    block = core.find_block(address)
    assert (block.requested_bytes, block.stream) == (3 * MIB, 0)
    assert allocate(0, _Stream(0)) == 0
    free(0, 0, _Stream(0))
    free(address, 3 * MIB, _Stream(0))
    assert core.stats()["live_blocks"] == 0


def test_rmm_s_stream_is_the_block_s(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    first = allocate(7 * MIB, _Stream(1000))
    assert core.find_block(first).stream == 1000
    free(first, 7 * MIB, _Stream(1000))
    allocate(7 * MIB, _Stream(2000))
    assert core.stats()["cross_stream_waits"] == 1


def test_the_stream_of_a_free_has_the_memory(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    first = allocate(7 * MIB, _Stream(1000))
    free(first, 7 * MIB, _Stream(2000))
    second = allocate(7 * MIB, _Stream(2000))
    assert core.stats()["cross_stream_waits"] == 0
    free(second, 7 * MIB, _Stream(2000))
    allocate(7 * MIB, _Stream(1000))
    assert core.stats()["cross_stream_waits"] == 1


def test_the_per_thread_default_stream_of_a_free_is_waited_for(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    per_thread, default = _Stream(2), _Stream(0)
    free(allocate(7 * MIB, default), 7 * MIB, per_thread)
    free(allocate(7 * MIB, default), 7 * MIB, default)
    assert (per_thread.waits, default.waits) == (1, 0)
    assert core.stats()["live_blocks"] == 0


def test_a_small_block_waits_for_the_stream_of_its_free(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    first = allocate(1000, _Stream(1000))
    free(first, 1000, _Stream(2000))
    assert core.stats()["pending_bytes"] == 1024
    assert allocate(1000, _Stream(1000)) != first
    core.complete_events(10)
    assert allocate(1000, _Stream(1000)) == first


def test_the_legacy_default_stream_is_the_default_one(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    address = allocate(1000, _Stream(1))
    assert core.find_block(address).stream == 0
    free(address, 1000, _Stream(1))
    assert core.stats()["live_blocks"] == 0


def test_the_per_thread_default_stream_is_refused(core: CorePool, rmm: None) -> None:
    allocate, _ = rmm_resource(core, None)  # type: ignore[misc]
    with pytest.raises(InvalidArgumentError, match="stands for another stream in each thread"):
        allocate(1000, _Stream(2))


def test_a_full_pool_is_a_memory_error(core: CorePool, rmm: None) -> None:
    allocate, _ = rmm_resource(core, None)  # type: ignore[misc]
    with pytest.raises(MemoryError, match="vramkit pool on cuda:3 is out of memory") as caught:
        allocate(9 * MIB, _Stream(0))
    assert isinstance(caught.value, PoolOutOfMemoryError)


def test_a_request_that_cannot_be_read(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    with pytest.raises(AttributeError, match="__cuda_stream__"):
        allocate(1000, 5)
    with pytest.raises(OverflowError):
        allocate(2**64, _Stream(0))
    with pytest.raises(OverflowError):
        allocate(-1, _Stream(0))
    with pytest.raises(TypeError, match="integer"):
        allocate("many", _Stream(0))
    with pytest.raises(InvalidArgumentError, match="takes 2 arguments, got 1"):
        allocate(1000)
    with pytest.raises(InvalidArgumentError, match="takes 3 arguments, got 2"):
        free(1000, 5)
    assert core.stats()["allocations"] == 0


def test_a_free_never_raises(core: CorePool, rmm: None, capfd: pytest.CaptureFixture[str]) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    assert free(0x1234, 1000, _Stream(0)) is None
    assert "vramkit: freeing 0x1234 failed: cuda:3: 0x1234 was not" in capfd.readouterr().err
    address = allocate(1000, _Stream(0))
    assert free(address, 1000, "no stream") is None
    assert f"the block at {address:#x} is lost" in capfd.readouterr().err
    assert core.stats()["live_blocks"] == 1


def test_the_resource_keeps_the_pool_s_object(core: CorePool, rmm: None) -> None:
    class Keeper:
        pass

    keeper = Keeper()
    gone = weakref.ref(keeper)
    resource: Any = rmm_resource(core, keeper)
    del keeper
    gc.collect()
    assert gone() is not None
    del resource
    gc.collect()
    assert gone() is None


class _NativeStream:
    """A stream whose methods run no bytecode, as those of RMM and CuPy."""

    def __init__(self, handle: int) -> None:
        self.ptr = handle
        self.__cuda_stream__ = functools.partial(tuple, (0, handle))


def test_an_interrupt_loses_neither_a_block_nor_itself(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(core, None)  # type: ignore[misc]
    stream = _NativeStream(1000)
    handled: list[int] = []

    def interrupt(*_unused: object) -> None:
        handled.append(1)
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    raised = within = 0
    try:
        for _ in range(300):
            addresses = [allocate(1000, stream) for _ in range(200)]
            # Without bytecode between the calls, as in C++.
            calls = map(free, addresses, [1000] * 200, [stream] * 200)
            try:
                signal.setitimer(signal.ITIMER_REAL, 5e-5)
                collections.deque(calls, maxlen=0)
                while True:
                    pass
            except TimeoutError:
                raised += 1
            left = core.stats()["live_blocks"]
            # On a busy machine the interrupt can come before the first call.
            assert left in (0, 200)
            within += left == 0
            collections.deque(calls, maxlen=0)
            assert core.stats()["live_blocks"] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised == len(handled) == 300
    assert within > 0


@pytest.fixture
def current_stream(monkeypatch: pytest.MonkeyPatch) -> list[_Stream]:
    """The stand-in of CuPy; the list's last item is its current stream."""
    streams = [_Stream(0)]

    class Allocator:
        def __init__(self, malloc: Callable[..., int], free: Callable[..., None]) -> None:
            self.malloc_func, self.free_func = malloc, free

        def malloc(self, size: int) -> Any:
            allocator = self

            class Memory:
                ptr = allocator.malloc_func(size, 3) if size else 0

                def __del__(self) -> None:
                    if self.ptr:
                        allocator.free_func(self.ptr, 3)

            return Memory()

    cuda = types.SimpleNamespace(
        PythonFunctionAllocator=Allocator, get_current_stream=lambda: streams[-1]
    )
    monkeypatch.setitem(sys.modules, "cupy", _module("cupy", cuda=cuda))
    return streams


def test_cupy_s_current_stream_is_the_block_s(
    core: CorePool, current_stream: list[_Stream]
) -> None:
    allocate = cupy_allocator(core, None, ordinal=3)
    current_stream.append(_Stream(1000))
    memory = allocate(7 * MIB)
    assert core.find_block(memory.ptr).stream == 1000
    current_stream.append(_Stream(2000))
    del memory
    gc.collect()
    assert core.stats()["live_blocks"] == 0
    allocate(7 * MIB)
    assert core.stats()["cross_stream_waits"] == 1
    assert allocate(0).ptr == 0


def test_cupy_s_streams_live_as_long_as_their_blocks(
    core: CorePool, current_stream: list[_Stream]
) -> None:
    gone: list[int] = []

    class Watched(_Stream):
        def __del__(self) -> None:
            gone.append(core.stats()["live_blocks"])

    allocate = cupy_allocator(core, None, ordinal=3)
    current_stream.append(Watched(1000))
    memory = allocate(MIB)
    current_stream.pop()
    gc.collect()
    assert gone == []
    del memory
    gc.collect()
    assert gone == [0]


def test_a_free_by_cupy_never_raises_either(
    core: CorePool, current_stream: list[_Stream], capfd: pytest.CaptureFixture[str]
) -> None:
    memory = cupy_allocator(core, None, ordinal=3)(MIB)
    core.free(memory.ptr)
    del memory
    gc.collect()
    assert "freed before" in capfd.readouterr().err
    other = cupy_allocator(core, None, ordinal=3)(MIB)
    other.ptr += 512
    del other
    gc.collect()
    assert "inside the live block" in capfd.readouterr().err


def test_cupy_on_another_device_is_refused(core: CorePool, current_stream: list[_Stream]) -> None:
    allocate = cupy_allocator(core, None, ordinal=1)
    with pytest.raises(
        InvalidArgumentError, match=r"device of CuPy is 3, and the pool is on cuda:1"
    ):
        allocate(1000)


@pytest.mark.parametrize("name", ["rmm", "cupy"])
def test_a_missing_package_names_the_extra(
    core: CorePool, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _interop.rmm_module.cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'vramkit\[{name}\]'"):
        rmm_resource(core, None) if name == "rmm" else cupy_allocator(core, None, ordinal=0)


def test_a_pool_on_the_cpu_has_neither(pool: MemoryPool) -> None:
    with pytest.raises(
        UnsupportedDeviceError, match=r"rmm_resource\(\) is for CUDA pools and this"
    ):
        pool.rmm_resource()
    with pytest.raises(UnsupportedDeviceError, match=r"cupy_allocator\(\) is for CUDA pools and"):
        pool.cupy_allocator()
