"""Memory is handed on only after the work that uses it, whatever stream that is on."""

import torch
from helpers.gpu import SHORT_SLEEP_CYCLES, RawStream, bytes_on_gpu
from helpers.pools import MIB, is_in

from vramkit import MemoryPool


def _overwrite_all(pool: MemoryPool, value: int) -> list[torch.Tensor]:
    """Take all that is free on the current stream, page by page, and write to it."""
    taken = []
    while pool.stats().largest_stitch_bytes >= 4 * MIB:
        taken.append(bytes_on_gpu(4 * MIB).fill_(value))
    return taken


def test_side_streams_allocate_from_the_pool(pool: MemoryPool) -> None:
    side = torch.cuda.Stream()
    with pool, torch.cuda.stream(side):
        made = torch.ones(1000, device="cuda") * 3
    side.synchronize()
    assert is_in(pool, made)
    assert float(made.sum()) == 3000


def test_record_stream_keeps_memory_until_the_other_stream_is_done() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    side = torch.cuda.Stream()
    result = torch.empty(32 * MIB, dtype=torch.uint8, device="cuda")
    with pool:
        source = bytes_on_gpu(32 * MIB).fill_(77)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(SHORT_SLEEP_CYCLES)
            result.copy_(source)
        source.record_stream(side)
        del source
        taken = _overwrite_all(pool, 1)
    assert len(taken) >= 8
    torch.cuda.synchronize()
    assert bool((result == 77).all())


def test_memory_freed_on_one_stream_is_taken_by_another_in_order() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    result = torch.empty(48 * MIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    with pool:
        with torch.cuda.stream(first):
            source = bytes_on_gpu(48 * MIB).fill_(77)
            torch.cuda._sleep(SHORT_SLEEP_CYCLES)
            result.copy_(source)
            del source
        with torch.cuda.stream(second):
            taken = _overwrite_all(pool, 1)
    assert len(taken) == 16
    torch.cuda.synchronize()
    assert bool((result == 77).all())
    assert pool.stats().cross_stream_waits > 0


def test_stitched_memory_of_busy_streams() -> None:
    """A block joined from pages that three streams have freed while they still work on them."""
    pool = MemoryPool("96MiB", device="cuda")
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = [torch.empty(8 * MIB, dtype=torch.uint8, device="cuda") for _ in range(6)]
    torch.cuda.synchronize()
    with pool:
        blocks = []
        for index in range(12):
            with torch.cuda.stream(streams[index % 3]):
                blocks.append(bytes_on_gpu(8 * MIB).fill_(index))
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(SHORT_SLEEP_CYCLES)
        for place, index in enumerate(range(0, 12, 2)):
            with torch.cuda.stream(streams[index % 3]):
                results[place].copy_(blocks[index])
        del blocks[::2]
        stitched = bytes_on_gpu(48 * MIB).fill_(99)
        assert is_in(pool, stitched)
    assert pool.stats().stitched_requests == 1
    torch.cuda.synchronize()
    for place, index in enumerate(range(0, 12, 2)):
        assert bool((results[place] == index).all())
    for place, index in enumerate(range(1, 12, 2)):
        assert bool((blocks[place] == index).all())
    assert bool((stitched == 99).all())


def test_a_stream_is_destroyed_before_its_tensors_and_its_work_are_done() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    for value in range(3):  # the second stream may get the handle of the first
        result = torch.zeros(48 * MIB, dtype=torch.uint8, device="cuda")
        raw = RawStream()
        with pool:
            with torch.cuda.stream(raw.in_torch()):
                source = bytes_on_gpu(48 * MIB).fill_(77 + value)
                small = torch.full((1000,), 5.0, device="cuda")
                torch.cuda._sleep(SHORT_SLEEP_CYCLES)
                result.copy_(source)
            raw.destroy()
            del source, small
            taken = bytes_on_gpu(60 * MIB).fill_(1)
        torch.cuda.synchronize()
        assert bool((result == 77 + value).all())
        assert bool((taken == 1).all())
        del taken
    pool._core.check()


def test_tensors_of_a_stream_that_is_gone_keep_their_values(pool: MemoryPool) -> None:
    raw = RawStream()
    with pool, torch.cuda.stream(raw.in_torch()):
        large = bytes_on_gpu(20 * MIB).fill_(7)
        small = torch.full((1000,), 5.0, device="cuda")
    torch.cuda.synchronize()
    raw.destroy()
    with pool:
        others = _overwrite_all(pool, 1)
    assert bool((large == 7).all())
    assert bool((small == 5).all())
    del large, small, others
    pool.trim()
    assert pool.stats().live_blocks == 0


def test_a_recorded_stream_is_destroyed_after_the_free() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    result = torch.empty(48 * MIB, dtype=torch.uint8, device="cuda")
    raw = RawStream()
    with pool:
        source = bytes_on_gpu(48 * MIB).fill_(77)
        raw.in_torch().wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(raw.in_torch()):
            torch.cuda._sleep(SHORT_SLEEP_CYCLES)
            result.copy_(source)
        source.record_stream(raw.in_torch())
        del source
        raw.destroy()
        taken = bytes_on_gpu(60 * MIB).fill_(1)
    torch.cuda.synchronize()
    assert bool((result == 77).all())
    assert bool((taken == 1).all())


def test_events(pool: MemoryPool) -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    side = torch.cuda.Stream()
    with pool:
        start.record()
        x = torch.ones(1000, device="cuda")
        side.wait_event(start)
        with torch.cuda.stream(side):
            y = torch.ones(1000, device="cuda")
        end.record(side)
        torch.cuda.current_stream().wait_event(end)
        total = (x + y).sum()
    end.synchronize()
    assert start.elapsed_time(end) > 0
    assert end.query()
    assert float(total) == 2000


def test_priority_streams(pool: MemoryPool) -> None:
    with pool:
        for priority in (-1, 0):
            with torch.cuda.stream(torch.cuda.Stream(priority=priority)):
                made = torch.ones(1000, device="cuda")
                assert is_in(pool, made)
                assert float(made.sum()) == 1000


def test_pinned_copies(pool: MemoryPool) -> None:
    host = torch.arange(3 * MIB, dtype=torch.int64).pin_memory()
    back = torch.empty_like(host).pin_memory()
    side = torch.cuda.Stream()
    with pool:
        with torch.cuda.stream(side):
            on_gpu = host.to("cuda", non_blocking=True)
        on_gpu.record_stream(torch.cuda.current_stream())
        torch.cuda.current_stream().wait_stream(side)
        doubled = on_gpu * 2
        back.copy_(doubled, non_blocking=True)
        torch.cuda.synchronize()
        assert is_in(pool, on_gpu)
        assert torch.equal(back, host * 2)
