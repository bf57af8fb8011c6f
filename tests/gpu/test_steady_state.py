"""A loop of equal steps settles: no mapping calls, and the host never waits for the GPU."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from helpers.gpu import (
    LONG_SLEEP_CYCLES,
    ConvNet,
    bytes_on_gpu,
    clean,
    make_step,
    wait_until_mapped,
)
from helpers.pools import MIB
from torch.profiler import ProfilerActivity, profile

from vramkit import MemoryPool


def _convolutions() -> Callable[[], object]:
    torch.manual_seed(0)
    return make_step(ConvNet(64).cuda(), batch=96, size=64)


def _sizes_that_fragment() -> Callable[[], object]:
    """Every step leaves no hole as large as its last request: that one is stitched."""

    def step() -> None:
        blocks = [bytes_on_gpu((40 + 8 * (index % 5)) * MIB).fill_(index) for index in range(20)]
        del blocks[::2]
        bytes_on_gpu(400 * MIB).fill_(1)

    return step


def _two_streams() -> Callable[[], object]:
    """The next batch is copied on a side stream, and recorded on the one that uses it."""
    train = make_step(ConvNet(64).cuda(), batch=96, size=64)
    side = torch.cuda.Stream()
    host = torch.ones(64 * MIB, dtype=torch.uint8).pin_memory()

    def step() -> None:
        with torch.cuda.stream(side):
            copied = host.to("cuda", non_blocking=True)
        torch.cuda.current_stream().wait_stream(side)
        copied.record_stream(torch.cuda.current_stream())
        copied.add_(1)
        del copied
        train()

    return step


LOOPS = [_convolutions, _sizes_that_fragment, _two_streams]


def _peak(make: Callable[[], Callable[[], object]]) -> int:
    pool = MemoryPool("8GiB", device="cuda")
    with pool:
        step = make()
        for _ in range(4):
            step()
            torch.cuda.synchronize()
    return pool.stats().peak_live_bytes


def _mapping_calls(
    make: Callable[[], Callable[[], object]], *, factor: float, steps: int
) -> list[int]:
    """Run a loop in so many times its peak; the pool's mapping calls until each step's end."""
    peak = _peak(make)
    clean()
    pool = MemoryPool(int(factor * peak), device="cuda")
    wait_until_mapped(pool)
    with pool:
        step = make()
        calls = []
        for _ in range(steps):
            step()
            torch.cuda.synchronize()
            calls.append(pool.stats().mapping_calls)
    pool._core.check()
    return calls


@pytest.mark.parametrize("factor", [1.01, 1.25])
@pytest.mark.parametrize("make", LOOPS)
def test_no_mapping_call_from_the_third_step_on(
    make: Callable[[], Callable[[], object]], factor: float
) -> None:
    calls = _mapping_calls(make, factor=factor, steps=8)
    assert calls[2:] == [calls[1]] * 6, calls


@pytest.mark.parametrize("make", LOOPS)
def test_the_pool_adds_no_synchronisation(make: Callable[[], Callable[[], object]]) -> None:
    def waits() -> Counter[str]:
        step = make()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            for _ in range(3):
                step()
        names = (event.name for event in recorded.events())
        return Counter(name for name in names if "ynchronize" in name)

    peak = _peak(make)
    clean()
    native = waits()
    clean()
    pool = MemoryPool(int(1.03 * peak) + 8 * MIB, device="cuda")
    wait_until_mapped(pool)
    with pool:
        assert waits() <= native, native


def test_the_host_runs_ahead_of_a_busy_gpu() -> None:
    """Whatever the pool does for these steps, stitching too, it does not wait for the GPU."""
    peak = _peak(_sizes_that_fragment)
    clean()
    pool = MemoryPool(int(1.02 * peak), device="cuda")
    side = torch.cuda.Stream()
    done = torch.cuda.Event()
    with pool:
        step = _sizes_that_fragment()
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG_SLEEP_CYCLES)
        for _ in range(4):
            step()
        with torch.cuda.stream(side):
            bytes_on_gpu(300 * MIB).fill_(2)
        done.record()
        assert not done.query()
    torch.cuda.synchronize()
    assert pool.stats().stitched_requests > 0
    pool._core.check()
