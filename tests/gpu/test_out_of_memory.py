"""A full pool: what the error says, and that training goes on after it."""

import re
import warnings

import pytest
import torch
from helpers.gpu import bytes_on_gpu
from helpers.pools import MIB, is_in, is_native
from torch import nn

from vramkit import MemoryPool


def test_the_explanation() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    with pool:
        kept = [bytes_on_gpu(size * MIB) for size in (20, 2, 6, 2, 8, 2)]
        del kept[2]
        with pytest.raises(torch.OutOfMemoryError) as caught:
            bytes_on_gpu(40 * MIB)
    text = str(caught.value)
    for item in (
        "CUDA out of memory. vramkit pool on cuda:0 is out of memory. ",
        "Wanted 40.0 MiB (41,943,040 bytes)",
        "capacity 64.0 MiB",
        "live 34.0 MiB in 5 blocks",
        "free 30.0 MiB",
        "largest free block",
        "Stitching cannot help: less is free than was wanted.",
        "To go on: free tensors or use a smaller batch",
        "pool.resize(",
        'overflow="native"',
        "The 5 largest live blocks:",
        "20.0 MiB at 0x",
    ):
        assert item in text, f"{item!r} is missing in:\n{text}"
    assert pool.stats().failures == 1


def test_what_is_held_outside_the_pool_is_told() -> None:
    native = bytes_on_gpu(512 * MIB)
    pool = MemoryPool("64MiB", device="cuda")
    with pool, pytest.raises(torch.OutOfMemoryError) as caught:
        bytes_on_gpu(80 * MIB)
    assert native.nbytes == 512 * MIB
    assert re.search(
        r"Outside the pool on cuda:0: PyTorch's own allocator holds 5\d\d\.\d MiB "
        r"\(5\d\d\.\d MiB in tensors\), other processes and CUDA contexts \d+\.\d [MG]iB; "
        r"the device has \d+\.\d [MG]iB of \d+\.\d GiB free",
        str(caught.value),
    )


def test_stacks_are_told() -> None:
    pool = MemoryPool("64MiB", device="cuda", record_stacks=True)
    with pool:
        kept = bytes_on_gpu(40 * MIB)
        with pytest.raises(torch.OutOfMemoryError, match=r"test_out_of_memory\.py:\d+ in "):
            bytes_on_gpu(kept.nbytes)


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_huge_sizes(pool: MemoryPool, size: int) -> None:
    with pool:
        with pytest.raises(torch.OutOfMemoryError):
            bytes_on_gpu(size)
        assert is_in(pool, bytes_on_gpu(1000))


def test_a_batch_size_search_fails_and_goes_on_100_times() -> None:
    pool = MemoryPool("256MiB", device="cuda")
    with pool:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 16)).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def step(batch: int) -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = model(torch.randn(batch, 1024, device="cuda")).square().mean()
            loss.backward()
            optimizer.step()
            return loss.item()

        failed = 0
        levels = []
        for _ in range(100):
            batch = 16_384
            while True:
                try:
                    step(batch)
                    break
                except torch.OutOfMemoryError:
                    failed += 1
                    batch //= 4
            assert batch >= 64
            optimizer.zero_grad(set_to_none=True)
            levels.append(pool.stats().live_bytes)
            pool._core.check()
    # The first round may have brought workspaces of libraries, which stay.
    assert set(levels) == {levels[0]}
    assert failed >= 100
    assert pool.stats().failures == failed


def test_a_handler_may_free_and_try_again(pool: MemoryPool) -> None:
    with pool:
        cache = [bytes_on_gpu(200 * MIB) for _ in range(4)]
        for _ in range(20):
            with pytest.raises(torch.cuda.OutOfMemoryError):
                bytes_on_gpu(400 * MIB)
            cache.pop()
            kept = bytes_on_gpu(400 * MIB).fill_(3)
            assert int(kept[-1]) == 3
            del kept
            cache.append(bytes_on_gpu(200 * MIB))


def test_memory_that_waits_for_a_stream_is_waited_for() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    side = torch.cuda.Stream()
    with pool:
        source = bytes_on_gpu(60 * MIB).fill_(1)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)
            source.add_(1)
        source.record_stream(side)
        del source
        again = bytes_on_gpu(60 * MIB).fill_(9)
    torch.cuda.synchronize()
    assert bool((again == 9).all())


def test_overflow_native_is_counted_and_warned_about_once() -> None:
    pool = MemoryPool("16MiB", device="cuda", overflow="native")
    with pool:
        kept = bytes_on_gpu(12 * MIB)
        with pytest.warns(
            UserWarning, match=r"a pool of 16\.0 MiB \(12\.0 MiB live\) has no room for"
        ):
            first = bytes_on_gpu(8 * MIB)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = bytes_on_gpu(9 * MIB)
        fits = bytes_on_gpu(MIB)
    assert is_in(pool, kept)
    assert is_native(first)
    assert is_native(second)
    assert is_in(pool, fits)
    stats = pool.stats()
    assert (stats.overflow_allocations, stats.overflow_bytes) == (2, 17 * MIB)
