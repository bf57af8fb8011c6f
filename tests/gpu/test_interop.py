"""One pool for the whole process: RMM and CuPy, and a pool on memory that RMM gave."""

import gc
import importlib.util

import numpy as np
import pytest
import torch
from helpers.gpu import SHORT_SLEEP_CYCLES, assert_given_back, bytes_on_gpu, free_bytes
from helpers.pools import MIB, is_in, is_native

from vramkit import MemoryPool
from vramkit._core import owner
from vramkit.errors import CapacityError, InvalidArgumentError, PoolBusyError

needs_rmm = pytest.mark.skipif(importlib.util.find_spec("rmm") is None, reason="no rmm")
needs_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="no cupy")


@needs_rmm
def test_rmm_buffers_come_from_the_pool(pool: MemoryPool) -> None:
    import rmm

    resource = pool.rmm_resource()
    buffer = rmm.DeviceBuffer(size=10 * MIB, mr=resource)
    assert owner(buffer.ptr) == pool._core.handle
    assert pool.stats().live_bytes == 10 * MIB
    empty = rmm.DeviceBuffer(size=0, mr=resource)
    assert empty.size == 0
    host = np.arange(256, dtype=np.uint8)
    copied = rmm.DeviceBuffer(ptr=host.ctypes.data, size=256, mr=resource)
    assert copied.tobytes() == bytes(range(256))
    del buffer, empty, copied
    assert pool.stats().live_blocks == 0


@needs_rmm
def test_rmm_s_own_out_of_memory(pool: MemoryPool) -> None:
    import rmm

    with pytest.raises(MemoryError, match="vramkit pool on cuda:0 is out of memory"):
        rmm.DeviceBuffer(size=2 << 30, mr=pool.rmm_resource())
    assert rmm.DeviceBuffer(size=MIB, mr=pool.rmm_resource()).size == MIB


@needs_rmm
def test_rmm_s_streams_are_honoured() -> None:
    import rmm
    from rmm.pylibrmm.stream import Stream

    pool = MemoryPool("64MiB", device="cuda")
    resource = pool.rmm_resource()
    rmm_stream, mine = Stream(), torch.cuda.Stream()
    theirs = torch.cuda.ExternalStream(rmm_stream.__cuda_stream__()[1])
    result = torch.empty(48 * MIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    buffer = rmm.DeviceBuffer(size=48 * MIB, stream=rmm_stream, mr=resource)
    seen = torch.as_tensor(buffer, device="cuda")
    assert seen.data_ptr() == buffer.ptr
    with torch.cuda.stream(theirs):
        seen.fill_(77)
        torch.cuda._sleep(SHORT_SLEEP_CYCLES)
        result.copy_(seen)
    del seen, buffer
    gc.collect()
    with pool, torch.cuda.stream(mine):
        taken = bytes_on_gpu(60 * MIB).fill_(1)
    torch.cuda.synchronize()
    assert bool((result == 77).all())
    assert bool((taken == 1).all())


@needs_rmm
def test_rmm_frees_on_another_stream_than_it_allocated_on() -> None:
    from rmm.pylibrmm.stream import Stream

    pool = MemoryPool("64MiB", device="cuda")
    resource = pool.rmm_resource()
    rmm_streams = Stream(), Stream()
    first, second = (
        torch.cuda.ExternalStream(stream.__cuda_stream__()[1]) for stream in rmm_streams
    )
    result = torch.empty(4, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    address = resource.allocate(48 * MIB, rmm_streams[0])
    with torch.cuda.stream(second):
        torch.cuda._sleep(SHORT_SLEEP_CYCLES)
        result.fill_(5)
    resource.deallocate(address, 48 * MIB, rmm_streams[1])
    with pool, torch.cuda.stream(first):
        taken = bytes_on_gpu(60 * MIB)
        # In first's order this runs after second's work, because the memory was freed after that.
        after = result.clone()
    torch.cuda.synchronize()
    assert taken.nbytes == 60 * MIB
    assert after.tolist() == [5] * 4


@needs_rmm
def test_rmm_s_streams_may_go_before_the_free_and_after_it() -> None:
    from rmm.pylibrmm.stream import Stream

    pool = MemoryPool("64MiB", device="cuda")
    resource = pool.rmm_resource()
    result = torch.zeros(4, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    owner_stream, later_stream = Stream(), Stream()
    first, second = (
        torch.cuda.ExternalStream(stream.__cuda_stream__()[1])
        for stream in (owner_stream, later_stream)
    )
    large = resource.allocate(48 * MIB, owner_stream)
    small = resource.allocate(1000, owner_stream)
    with torch.cuda.stream(first):
        torch.cuda._sleep(SHORT_SLEEP_CYCLES)
        result.fill_(5)
    second.wait_stream(first)
    del first, owner_stream
    resource.deallocate(large, 48 * MIB, later_stream)
    resource.deallocate(small, 1000, later_stream)
    del second, later_stream
    with pool:
        taken = bytes_on_gpu(48 * MIB)
        # After the work of both streams, because the memory was freed after that.
        after = result.clone()
    assert pool.stats().cross_stream_waits == 1
    torch.cuda.synchronize()
    assert taken.nbytes == 48 * MIB
    assert after.tolist() == [5] * 4
    pool._core.check()


@needs_rmm
def test_the_current_device_s_resource_keeps_the_pool_open() -> None:
    import rmm

    before = rmm.mr.get_current_device_resource()
    handle = MemoryPool("64MiB", device="cuda")._core.handle
    rmm.mr.set_current_device_resource(MemoryPool("64MiB", device="cuda").rmm_resource())
    try:
        gc.collect()
        for _ in range(3):
            buffer = rmm.DeviceBuffer(size=MIB)
            assert owner(buffer.ptr) not in (0, handle)
            del buffer
    finally:
        rmm.mr.set_current_device_resource(before)


@needs_rmm
def test_a_pool_on_rmm_s_memory() -> None:
    import rmm

    before = free_bytes()
    upstream = rmm.mr.CudaMemoryResource()
    pool = MemoryPool("512MiB", device="cuda", upstream=upstream)
    assert 500 * MIB < pool.stats().capacity_bytes <= 512 * MIB
    with pool:
        kept = [bytes_on_gpu(40 * MIB).fill_(index) for index in range(10)]
        assert all(is_in(pool, tensor) for tensor in kept)
        del kept[::2]
        with pytest.raises(torch.OutOfMemoryError):
            bytes_on_gpu(480 * MIB)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            more = bytes_on_gpu(40 * MIB).fill_(99)
        side.synchronize()
    assert bool((more == 99).all())
    assert all(bool((tensor == 2 * index + 1).all()) for index, tensor in enumerate(kept))
    assert pool.stats().stitched_requests == 0
    with pytest.raises(InvalidArgumentError, match="with upstream= cannot be resized"):
        pool.resize("1GiB")
    with pytest.raises(PoolBusyError):
        pool.close()
    kept.clear()
    del more
    pool.close()
    gc.collect()
    assert_given_back(before)


@needs_rmm
def test_tensors_outlive_a_pool_on_rmm_s_memory() -> None:
    import time

    import rmm

    before = free_bytes()
    pool = MemoryPool("512MiB", device="cuda", upstream=rmm.mr.CudaMemoryResource())
    with pool:
        kept = bytes_on_gpu(100 * MIB).fill_(3)
    del pool
    gc.collect()
    time.sleep(0.5)
    assert before - torch.cuda.mem_get_info()[0] >= 512 * MIB
    assert bool((kept == 3).all())
    del kept
    assert_given_back(before)


@needs_rmm
def test_upstream_pools_that_cannot_be(pool: MemoryPool) -> None:
    import rmm

    with pytest.raises(TypeError, match=r"upstream must be an rmm\.mr\.DeviceMemoryResource"):
        MemoryPool("64MiB", device="cuda", upstream=object())  # type: ignore[arg-type]
    with pytest.raises(CapacityError, match="with upstream= nobody knows"):
        MemoryPool(0.5, device="cuda", upstream=rmm.mr.CudaMemoryResource())
    with pytest.raises(CapacityError, match=r"the resource cannot give .* in one piece"):
        MemoryPool("10TiB", device="cuda", upstream=rmm.mr.CudaMemoryResource())
    with pytest.raises(InvalidArgumentError, match="lies in a vramkit pool already"):
        MemoryPool("64MiB", device="cuda", upstream=pool.rmm_resource())
    gc.collect()
    assert pool.stats().live_blocks == 0


@needs_cupy
def test_cupy_arrays_come_from_the_pool(pool: MemoryPool) -> None:
    import cupy

    with cupy.cuda.using_allocator(pool.cupy_allocator()):
        array = cupy.arange(1 << 20, dtype=cupy.int64)
        assert owner(array.data.ptr) == pool._core.handle
        assert int(array.sum()) == (1 << 19) * ((1 << 20) - 1)
        assert cupy.empty(0).size == 0
        with pytest.raises(MemoryError, match="vramkit pool on cuda:0 is out of memory"):
            cupy.empty(2 << 30, dtype=cupy.uint8)
        as_tensor = torch.from_dlpack(array)
        del array
        assert int(as_tensor[1000]) == 1000
    del as_tensor
    gc.collect()
    assert pool.stats().live_bytes < MIB


@needs_cupy
def test_cupy_s_streams_are_honoured_even_when_they_are_gone() -> None:
    import cupy

    pool = MemoryPool("64MiB", device="cuda")
    result = cupy.empty(48 * MIB, dtype=cupy.uint8)
    with cupy.cuda.using_allocator(pool.cupy_allocator()):
        for value in range(5):
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream:
                array = cupy.full(48 * MIB, value, dtype=cupy.uint8)
                for _ in range(300):
                    result[:] = array
            del stream
            del array
            with pool:
                taken = bytes_on_gpu(60 * MIB).fill_(200)
            torch.cuda.synchronize()
            assert bool((taken == 200).all())
            del taken  # makes room for the comparison, which CuPy makes in the pool
            assert bool((result == value).all())
    pool._core.check()


@needs_cupy
def test_cupy_keeps_the_pool_open() -> None:
    import cupy

    allocator = MemoryPool("64MiB", device="cuda").cupy_allocator()
    gc.collect()
    for _ in range(3):
        memory = allocator(1000)
        assert owner(memory.ptr) != 0
        del memory
    assert cupy.empty(10).size == 10


def test_what_is_made_outside_is_native(pool: MemoryPool) -> None:
    with pool, pool.outside():
        assert is_native(torch.empty(1000, device="cuda"))
