"""The pool object: arguments, statistics, size, end."""

import copy
import gc
import pickle
import re
import warnings
import weakref

import numpy as np
import pytest
import torch
from helpers.pools import MIB, is_in, is_native, run_script, stats_of

import vramkit
from vramkit import MemoryPool
from vramkit.errors import CapacityError, InvalidArgumentError, PoolBusyError, PoolClosedError


def _bytes(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


# ---- arguments


@pytest.mark.parametrize("capacity", [64 * MIB, "64MiB", "64 MB", np.int32(64 * MIB), 0.01])
def test_capacities(capacity: str | float) -> None:
    pool = MemoryPool(capacity, device="cpu")
    assert pool.stats().capacity_bytes % pool.stats().page_bytes == 0
    assert pool.stats().capacity_bytes > 32 * MIB
    with pool:
        assert is_in(pool, torch.empty(1000))


def test_capacity_is_rounded_down_to_pages() -> None:
    assert MemoryPool(7 * MIB - 1, device="cpu").stats().capacity_bytes == 6 * MIB


def test_the_options_can_be_read_and_not_set() -> None:
    pool = MemoryPool("64MiB", device="cpu", page_bytes="1MiB", overflow="native")
    assert pool.capacity_bytes == 64 * MIB
    assert pool.device == torch.device("cpu")
    assert pool.page_bytes == MIB
    assert pool.overflow == "native"
    pool.resize("32MiB")
    assert pool.capacity_bytes == 32 * MIB
    for name in ("capacity_bytes", "device", "page_bytes", "overflow"):
        with pytest.raises(AttributeError, match="has no setter"):
            setattr(pool, name, 5)
    pool.resize("16MiB")
    pool.close()
    assert (pool.capacity_bytes, pool.page_bytes, pool.overflow) == (16 * MIB, MIB, "native")
    assert pool.device == torch.device("cpu")


def test_page_bytes() -> None:
    pool = MemoryPool("7MiB", device="cpu", page_bytes="64KiB")
    assert (pool.stats().page_bytes, pool.stats().capacity_bytes) == (65536, 7 * MIB)


@pytest.mark.parametrize("capacity", ["2G", 1, -1, 2.0, "1000TiB", 2**70])
def test_capacities_that_cannot_work(capacity: str | float) -> None:
    with pytest.raises(CapacityError):
        MemoryPool(capacity, device="cpu")


@pytest.mark.parametrize("capacity", [True, None, object(), b"2GiB"])
def test_capacities_of_the_wrong_type(capacity: object) -> None:
    with pytest.raises(TypeError, match="capacity must be an integer"):
        MemoryPool(capacity, device="cpu")  # type: ignore[arg-type]


def test_overflow_has_two_values() -> None:
    with pytest.raises(InvalidArgumentError, match="must be 'error' or 'native', got 'malloc'"):
        MemoryPool("64MiB", device="cpu", overflow="malloc")  # type: ignore[arg-type]


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        MemoryPool("64MiB", "cpu")  # type: ignore[misc]


# ---- what it tells


def test_stats_follow_the_tensors(pool: MemoryPool) -> None:
    fresh = pool.stats()
    assert (fresh.capacity_bytes, fresh.live_bytes, fresh.live_blocks) == (256 * MIB, 0, 0)
    assert (fresh.allocations, fresh.frees, fresh.failures, fresh.fragmentation) == (0, 0, 0, 0.0)
    with pool:
        first, second = _bytes(10 * MIB), _bytes(1000)
    both = pool.stats()
    assert both.live_bytes == 10 * MIB + 1000
    assert both.allocated_bytes >= both.live_bytes
    assert both.free_bytes == both.capacity_bytes - both.allocated_bytes
    assert (both.live_blocks, both.allocations, both.frees) == (2, 2, 0)
    assert both.mapped_bytes >= both.live_bytes
    del first, second
    after = pool.stats()
    assert (after.live_bytes, after.peak_live_bytes, after.frees) == (0, 10 * MIB + 1000, 2)
    pool.reset_peak_stats()
    assert pool.stats().peak_live_bytes == 0


def test_stats_are_frozen(pool: MemoryPool) -> None:
    with pytest.raises(AttributeError):
        pool.stats().live_bytes = 3  # type: ignore[misc]


def test_stats_by_size_class(pool: MemoryPool) -> None:
    with pool:
        kept = [_bytes(size) for size in (100, 512, 513, 3 * MIB, 4 * MIB)]
    rows = {row.upper_bytes: row for row in pool.stats().size_classes}
    assert set(rows) == {512, 1024, 4 * MIB}
    assert (rows[512].live_blocks, rows[512].live_bytes) == (2, 612)
    assert (rows[4 * MIB].live_blocks, rows[4 * MIB].allocations) == (2, 2)
    kept.clear()
    rows = {row.upper_bytes: row for row in pool.stats().size_classes}
    assert (rows[4 * MIB].live_blocks, rows[4 * MIB].frees) == (0, 2)


def test_fragmentation_is_what_no_request_can_get() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    with pool:
        kept = [_bytes(8 * MIB) for _ in range(8)]
    del kept[1], kept[2:4]
    stats = pool.stats()
    assert (stats.free_bytes, stats.largest_free_bytes) == (24 * MIB, 16 * MIB)
    assert (stats.largest_stitch_bytes, stats.fragmentation) == (24 * MIB, 0.0)
    kept.clear()
    with pool:
        # Half a page each, every other one dropped: no page is wholly free.
        kept = [_bytes(MIB) for _ in range(64)]
    del kept[::2]
    stats = pool.stats()
    assert (stats.largest_free_bytes, stats.largest_stitch_bytes) == (MIB, 0)
    assert stats.fragmentation == pytest.approx(31 / 32)
    assert "96.9%" in pool.memory_summary()


def test_stitching_serves_what_no_hole_holds() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    with pool:
        kept = [_bytes(8 * MIB).fill_(index) for index in range(8)]
        del kept[1::2]
        stitched = _bytes(30 * MIB).fill_(77)
        assert is_in(pool, stitched)
    assert pool.stats().stitched_requests == 1
    assert pool.stats().stitched_pages == 15
    assert bool((stitched == 77).all())
    for index, tensor in enumerate(kept):
        assert bool((tensor == 2 * index).all())
    block = next(block for block in pool.snapshot() if block.kind == "stitched")
    assert (block.address, block.requested_bytes) == (stitched.data_ptr(), 30 * MIB)
    del stitched
    with pool:
        again = [_bytes(8 * MIB).fill_(9) for _ in range(4)]
    assert all(bool((tensor == 9).all()) for tensor in again)
    for index, tensor in enumerate(kept):
        assert bool((tensor == 2 * index).all())


def test_snapshot_lists_blocks_by_address(pool: MemoryPool) -> None:
    with pool:
        large, small = _bytes(3 * MIB), _bytes(100)
    blocks = pool.snapshot()
    live = {block.address: block for block in blocks if block.state == "live"}
    assert set(live) == {large.data_ptr(), small.data_ptr()}
    assert live[large.data_ptr()].kind == "large"
    assert live[large.data_ptr()].requested_bytes == 3 * MIB
    assert live[small.data_ptr()].kind == "small"
    assert [block.address for block in blocks] == sorted(block.address for block in blocks)
    assert any(block.state == "free" for block in blocks)


def test_memory_summary_is_a_table_with_the_numbers(pool: MemoryPool) -> None:
    with pool:
        kept = _bytes(10 * MIB)
        _bytes(20 * MIB)
    assert kept.nbytes == 10 * MIB
    lines = pool.memory_summary().splitlines()
    assert {len(line) for line in lines} == {77}
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    table = "\n".join(lines)
    assert "vramkit memory pool, device cpu, 256.0 MiB" in table
    assert re.search(r"\| Live +\| +10\.0 MiB \| +30\.0 MiB\|", table)
    assert re.search(r"\| Capacity +\| +256\.0 MiB \|", table)
    assert re.search(r"\| Blocks +\| +1 \| +2\|", table)
    assert re.search(r"\| 16\.0 MiB +\| +1 \| +10\.0 MiB \| +1\|", table)
    assert "out of memory: 0  |  overflowed to PyTorch: 0 (0 B)" in table


def test_repr(pool: MemoryPool) -> None:
    with pool:
        kept = _bytes(3 * MIB)
    assert kept.nbytes == 3 * MIB
    assert repr(pool) == "<MemoryPool device='cpu' capacity=256.0 MiB live=3.0 MiB in 1 block>"


# ---- size and end


def test_trim_gives_physical_memory_back(pool: MemoryPool) -> None:
    with pool:
        kept, dropped = _bytes(32 * MIB).fill_(5), _bytes(64 * MIB).fill_(6)
    del dropped
    mapped = pool.stats().mapped_bytes
    released = pool.trim()
    assert released >= 64 * MIB
    assert pool.stats().mapped_bytes == mapped - released
    assert pool.stats().capacity_bytes == 256 * MIB
    with pool:
        again = _bytes(200 * MIB).fill_(7)
    assert bool((kept == 5).all())
    assert bool((again == 7).all())


def test_resize_grows_and_shrinks() -> None:
    pool = MemoryPool("32MiB", device="cpu")
    with pool:
        kept = _bytes(24 * MIB).fill_(3)
        with pytest.raises(torch.OutOfMemoryError):
            _bytes(24 * MIB)
        pool.resize("96MiB")
        more = _bytes(60 * MIB).fill_(4)
    assert pool.stats().capacity_bytes == 96 * MIB
    with pytest.raises(PoolBusyError):
        pool.resize("48MiB")
    assert pool.stats().capacity_bytes == 96 * MIB
    del more
    pool.resize("48MiB")
    assert pool.stats().capacity_bytes == 48 * MIB
    assert bool((kept == 3).all())
    with pytest.raises(CapacityError, match="at most"):
        pool.resize("1000TiB")


def test_close_refuses_while_tensors_live_and_says_how_many() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    with pool:
        kept = [_bytes(4 * MIB), _bytes(2 * MIB)]
    with pytest.raises(PoolBusyError) as caught:
        pool.close()
    assert str(caught.value) == (
        "cpu: cannot close: the pool still holds 2 live blocks of 6.0 MiB in total; delete "
        "the tensors or buffers first (pool.snapshot() lists them)\n"
        "The 2 largest:\n"
        f"       4.0 MiB at {kept[0].data_ptr():#x}\n"
        f"       2.0 MiB at {kept[1].data_ptr():#x}"
    )
    assert not pool.closed
    with pool:
        assert is_in(pool, _bytes(MIB))
    kept.clear()
    pool.close()
    assert pool.closed


def test_a_closed_pool_says_so() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    pool.close()
    pool.close()
    assert repr(pool) == "<MemoryPool device='cpu' closed>"
    for use in (pool.stats, pool.memory_summary, pool.snapshot, pool.trim, pool.reset_peak_stats):
        with pytest.raises(PoolClosedError):
            use()
    with pytest.raises(PoolClosedError):
        pool.resize("128MiB")


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_pool_cannot_be_copied(pool: MemoryPool, copier: object) -> None:
    with pytest.raises(TypeError, match="MemoryPool cannot be copied or pickled: it is memory of"):
        copier(pool)  # type: ignore[operator]


# ---- lifetime


def test_tensors_outlive_scope_and_pool() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    with pool:
        kept = torch.arange(1_000_000)
    handle = pool._core.handle
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None
    assert stats_of(handle)["live_blocks"] == 1
    assert int(kept.sum()) == 499_999_500_000
    view = kept[10:20]
    del kept
    assert view.tolist() == list(range(10, 20))
    del view
    with pytest.raises(PoolClosedError):
        stats_of(handle)


def test_a_dropped_pool_is_closed_at_once() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    handle = pool._core.handle
    del pool
    gc.collect()
    with pytest.raises(PoolClosedError):
        stats_of(handle)


def test_hundreds_of_pools_in_turn() -> None:
    for index in range(300):
        pool = MemoryPool("64MiB", device="cpu")
        with pool:
            made = torch.full((100_000,), float(index))
        del pool
        assert made[0] == index


def test_the_process_ends_with_live_tensors_inside_the_scope() -> None:
    run_script(
        """
        import torch, vramkit
        pool = vramkit.MemoryPool("64MiB", device="cpu")
        pool.__enter__()
        kept = [torch.ones(n) for n in (10, 1000, 1_000_000)]
        module = torch.nn.Linear(100, 100)
        module(torch.ones(5, 100)).sum().backward()
        """
    )


# ---- out of memory


def test_the_explanation_has_every_number() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    with pool:
        kept = [_bytes(size * MIB) for size in (20, 2, 6, 2, 8, 2)]
        del kept[2]
        with pytest.raises(torch.OutOfMemoryError) as caught:
            _bytes(40 * MIB)
    stats = pool.stats()
    assert stats.failures == 1
    assert (stats.live_bytes, stats.free_bytes) == (34 * MIB, 30 * MIB)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "DefaultCPUAllocator: can't allocate memory. "
        "vramkit pool on cpu is out of memory. Wanted 40.0 MiB (41,943,040 bytes); capacity "
        "64.0 MiB, live 34.0 MiB in 5 blocks, free 30.0 MiB, largest free block 24.0 MiB. "
        "Stitching cannot help: less is free than was wanted."
    )
    assert lines[1].strip() == (
        "To go on: free tensors or use a smaller batch; or give the pool at least 10MiB more "
        "(a larger capacity, or pool.resize(77594624)); or let such requests go to PyTorch's "
        'allocator with overflow="native".'
    )
    assert lines[2].strip() == "The 5 largest live blocks:"
    largest = [(tensor.nbytes, tensor.data_ptr()) for tensor in kept]
    largest.sort(key=lambda block: (-block[0], block[1]))
    assert [line.strip() for line in lines[3:]] == [
        f"{size / MIB:.1f} MiB at {address:#x}" for size, address in largest
    ]


def test_at_most_ten_live_blocks_are_listed() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    with pool:
        kept = [_bytes(4 * MIB + index * 512) for index in range(12)]
        with pytest.raises(torch.OutOfMemoryError) as caught:
            _bytes(20 * MIB)
    listed = [line for line in str(caught.value).splitlines() if " at 0x" in line]
    assert [int(line.split(" at ")[1], 16) for line in listed] == [
        tensor.data_ptr() for tensor in reversed(kept[2:])
    ]


def test_the_explanation_says_what_scattered_pages_lack() -> None:
    """Enough bytes are free, but not enough wholly free pages: live blocks sit in the others."""
    pool = MemoryPool("32MiB", device="cpu")
    with pool:
        kept = [_bytes(MIB) for _ in range(32)]
        del kept[::2]
        with pytest.raises(torch.OutOfMemoryError) as caught:
            _bytes(8 * MIB)
    assert (
        "free 16.0 MiB, largest free block 1.0 MiB. Stitching did not help: "
        "it joins wholly free pages of 2.0 MiB, and of these there are 0 B, while "
        "the request needs 8.0 MiB; the other 16.0 MiB of free memory "
        "lie in pages that are partly in use."
    ) in str(caught.value)
    assert len(kept) == 16


def test_out_of_memory_a_hundred_times_and_on(pool: MemoryPool) -> None:
    with pool:
        kept = _bytes(200 * MIB).fill_(9)
        for _ in range(100):
            with pytest.raises(torch.OutOfMemoryError):
                _bytes(57 * MIB)
        fits = _bytes(50 * MIB).fill_(8)
    assert pool.stats().failures == 100
    assert bool((kept == 9).all())
    assert bool((fits == 8).all())


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 1])
def test_huge_sizes_are_out_of_memory(pool: MemoryPool, size: int) -> None:
    with pool:
        with pytest.raises(torch.OutOfMemoryError):
            _bytes(size)
        assert is_in(pool, _bytes(1000))


def test_overflow_native_is_counted_and_warned_about_once() -> None:
    pool = MemoryPool("16MiB", device="cpu", overflow="native")
    with pool:
        kept = _bytes(12 * MIB)
        with pytest.warns(
            UserWarning,
            match=r"a pool of 16\.0 MiB \(12\.0 MiB live\) has no room for 8\.0 MiB\. PyTorch",
        ):
            first = _bytes(8 * MIB)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = _bytes(9 * MIB)
        fits = _bytes(MIB)
    assert is_in(pool, kept)
    assert is_native(first)
    assert is_native(second)
    assert is_in(pool, fits)
    stats = pool.stats()
    assert (stats.overflow_allocations, stats.overflow_bytes) == (2, 17 * MIB)
    assert "overflowed to PyTorch: 2 (17.0 MiB)" in pool.memory_summary()


def test_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", vramkit.__version__)
