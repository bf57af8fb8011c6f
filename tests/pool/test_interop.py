"""Memory for RMM and CuPy, with stand-ins for both: streams, ends, and what is missing."""

import gc
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from vramkit import MemoryPool
from vramkit._core import CorePool
from vramkit.errors import InvalidArgumentError, PoolOutOfMemoryError, UnsupportedDeviceError
from vramkit.pool import _interop
from vramkit.pool._interop import StreamMemory, cupy_allocator, rmm_resource

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
    allocate, free = rmm_resource(StreamMemory(core, keeper=None))  # type: ignore[misc]
    address = allocate(3 * MIB, _Stream(0))
    block = core.find_block(address)
    assert (block.requested_bytes, block.stream) == (3 * MIB, 0)
    assert allocate(0, _Stream(0)) == 0
    free(0, 0, _Stream(0))
    free(address, 3 * MIB, _Stream(0))
    assert core.stats()["live_blocks"] == 0


def test_rmm_s_stream_is_the_block_s(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(StreamMemory(core, keeper=None))  # type: ignore[misc]
    first = allocate(7 * MIB, _Stream(1000))
    assert core.find_block(first).stream == 1000
    free(first, 7 * MIB, _Stream(1000))
    allocate(7 * MIB, _Stream(2000))
    assert core.stats()["cross_stream_waits"] == 1


def test_the_stream_of_a_free_has_the_memory(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(StreamMemory(core, keeper=None))  # type: ignore[misc]
    first = allocate(7 * MIB, _Stream(1000))
    free(first, 7 * MIB, _Stream(2000))
    second = allocate(7 * MIB, _Stream(2000))
    assert core.stats()["cross_stream_waits"] == 0
    free(second, 7 * MIB, _Stream(2000))
    allocate(7 * MIB, _Stream(1000))
    assert core.stats()["cross_stream_waits"] == 1


def test_the_per_thread_default_stream_of_a_free_is_waited_for(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(StreamMemory(core, keeper=None))  # type: ignore[misc]
    per_thread, default = _Stream(2), _Stream(0)
    free(allocate(7 * MIB, default), 7 * MIB, per_thread)
    free(allocate(7 * MIB, default), 7 * MIB, default)
    assert (per_thread.waits, default.waits) == (1, 0)
    assert core.stats()["live_blocks"] == 0


def test_a_small_block_waits_for_the_stream_of_its_free(core: CorePool, rmm: None) -> None:
    allocate, free = rmm_resource(StreamMemory(core, keeper=None))  # type: ignore[misc]
    first = allocate(1000, _Stream(1000))
    free(first, 1000, _Stream(2000))
    assert core.stats()["pending_bytes"] == 1024
    assert allocate(1000, _Stream(1000)) != first
    core.complete_events(10)
    assert allocate(1000, _Stream(1000)) == first


def test_the_legacy_default_stream_is_the_default_one(core: CorePool) -> None:
    memory = StreamMemory(core, keeper=None)
    assert core.find_block(memory.allocate(1000, 1)).stream == 0


def test_the_per_thread_default_stream_is_refused(core: CorePool) -> None:
    with pytest.raises(InvalidArgumentError, match="stands for another stream in each thread"):
        StreamMemory(core, keeper=None).allocate(1000, 2)


def test_a_full_pool_is_a_memory_error(core: CorePool) -> None:
    with pytest.raises(MemoryError, match="vramkit pool on cuda:3 is out of memory") as caught:
        StreamMemory(core, keeper=None).allocate(9 * MIB, 0)
    assert isinstance(caught.value, PoolOutOfMemoryError)


def test_a_free_never_raises(core: CorePool, capsys: pytest.CaptureFixture[str]) -> None:
    StreamMemory(core, keeper=None).free(0x1234, 0)
    assert "vramkit: freeing 0x1234 failed: cuda:3: 0x1234 was not" in capsys.readouterr().err


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
    allocate = cupy_allocator(StreamMemory(core, keeper=None), 3)
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

    allocate = cupy_allocator(StreamMemory(core, keeper=None), 3)
    current_stream.append(Watched(1000))
    memory = allocate(MIB)
    current_stream.pop()
    gc.collect()
    assert gone == []
    del memory
    gc.collect()
    assert gone == [0]


def test_a_free_by_cupy_never_raises_either(
    core: CorePool, current_stream: list[_Stream], capsys: pytest.CaptureFixture[str]
) -> None:
    memory = cupy_allocator(StreamMemory(core, keeper=None), 3)(MIB)
    core.free(memory.ptr)
    del memory
    gc.collect()
    assert "freed before" in capsys.readouterr().err
    other = cupy_allocator(StreamMemory(core, keeper=None), 3)(MIB)
    other.ptr += 512
    del other
    gc.collect()
    assert "inside the live block" in capsys.readouterr().err


def test_cupy_on_another_device_is_refused(core: CorePool, current_stream: list[_Stream]) -> None:
    allocate = cupy_allocator(StreamMemory(core, keeper=None), 1)
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
    memory = StreamMemory(core, keeper=None)
    with pytest.raises(ImportError, match=rf"pip install 'vramkit\[{name}\]'"):
        rmm_resource(memory) if name == "rmm" else cupy_allocator(memory, 0)


def test_a_pool_on_the_cpu_has_neither(pool: MemoryPool) -> None:
    with pytest.raises(
        UnsupportedDeviceError, match=r"rmm_resource\(\) is for CUDA pools and this"
    ):
        pool.rmm_resource()
    with pytest.raises(UnsupportedDeviceError, match=r"cupy_allocator\(\) is for CUDA pools and"):
        pool.cupy_allocator()
