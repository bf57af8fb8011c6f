"""PyTorch's own memory functions, with a pool in use: their numbers include the pool's."""

import re

import pytest
import torch
from helpers.gpu import bytes_on_gpu
from helpers.pools import MIB, is_native

from vramkit import MemoryPool

BIG = 300 * MIB


def test_memory_allocated_follows_the_pool(pool: MemoryPool) -> None:
    before = torch.cuda.memory_allocated()
    with pool:
        kept = bytes_on_gpu(BIG)
    assert torch.cuda.memory_allocated() - before == BIG
    with pool:
        bytes_on_gpu(BIG)
    assert torch.cuda.memory_allocated() - before == BIG
    native = bytes_on_gpu(BIG)
    assert is_native(native)
    assert torch.cuda.memory_allocated() - before == 2 * BIG
    del kept, native
    assert torch.cuda.memory_allocated() == before


def test_peaks_and_their_reset(pool: MemoryPool) -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with pool:
        bytes_on_gpu(BIG)
    assert torch.cuda.max_memory_allocated() >= before + BIG
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() < before + BIG
    assert pool.stats().peak_live_bytes == 0


def test_memory_stats(pool: MemoryPool) -> None:
    before = torch.cuda.memory_stats()
    with pool:
        kept = bytes_on_gpu(BIG)
    after = torch.cuda.memory_stats()
    assert set(before) <= set(after)
    for name in ("allocated_bytes", "requested_bytes", "active_bytes"):
        assert after[f"{name}.all.current"] - before[f"{name}.all.current"] == BIG, name
        assert after[f"{name}.all.peak"] >= after[f"{name}.all.current"], name
    assert after["allocation.all.current"] - before["allocation.all.current"] == 1
    assert after["allocation.all.allocated"] - before["allocation.all.allocated"] == 1
    assert after["reserved_bytes.all.current"] >= after["allocated_bytes.all.current"]
    del kept
    freed = torch.cuda.memory_stats()
    assert freed["allocation.all.freed"] - before["allocation.all.freed"] == 1


def test_totals_stay_when_a_pool_closes_and_start_again_at_a_reset() -> None:
    totals = [
        f"{name}.all.{event}"
        for name in ("allocated_bytes", "requested_bytes", "active_bytes", "allocation", "active")
        for event in ("allocated", "freed")
    ]
    before = torch.cuda.memory_stats()
    pool = MemoryPool("512MiB", device="cuda")
    with pool:
        for _ in range(3):
            bytes_on_gpu(BIG)
    pool.close()
    after = torch.cuda.memory_stats()
    for name in totals:
        assert after[name] - before[name] == 3 * (BIG if "bytes" in name else 1), name
    torch.cuda.reset_accumulated_memory_stats()
    again = torch.cuda.memory_stats()
    assert [name for name in totals if again[name] != 0] == []


def test_out_of_memory_is_counted() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    before = torch.cuda.memory_stats()["num_ooms"]
    with pool, pytest.raises(torch.OutOfMemoryError):
        bytes_on_gpu(BIG)
    assert torch.cuda.memory_stats()["num_ooms"] == before + 1


def test_summaries(pool: MemoryPool) -> None:
    with pool:
        kept = bytes_on_gpu(BIG)
        assert re.search(r"Allocated memory *\| *3\d\d", torch.cuda.memory_summary())
        assert "GPU reserved memory" in torch.cuda.memory_summary(abbreviated=True)
    native = bytes_on_gpu(BIG)
    assert kept.nbytes == native.nbytes == BIG
    text = pool.memory_summary()
    assert "vramkit memory pool, device cuda:0, 1.0 GiB" in text
    assert re.search(r"\| Live +\| +300\.0 MiB \| +300\.0 MiB\|", text)
    own = re.search(r"\| By PyTorch's own allocator +\| +([\d,.]+) MiB\|", text)
    assert own is not None
    assert 300 <= float(own[1].replace(",", "")) < 350


def test_summary_names_what_graphs_hold(pool: MemoryPool) -> None:
    static = torch.ones(64 * MIB, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pool, torch.cuda.graph(graph):
        doubled = static * 2
    held = re.search(r"\| By CUDA graphs and .* \| +([\d,.]+) MiB\|", pool.memory_summary())
    assert held is not None
    assert 256 <= float(held[1].replace(",", "")) < 300
    assert is_native(doubled)


def test_snapshot_and_history(pool: MemoryPool) -> None:
    torch.cuda.memory._record_memory_history(max_entries=1000)
    try:
        with pool:
            kept = bytes_on_gpu(BIG)
            bytes_on_gpu(BIG + 512)
        snapshot = torch.cuda.memory._snapshot()
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    address = kept.data_ptr()
    [segment] = [
        segment
        for segment in snapshot["segments"]
        if segment["address"] <= address < segment["address"] + segment["total_size"]
    ]
    blocks = [block for block in segment["blocks"] if block.get("address") == address]
    assert [(block["requested_size"], block["state"]) for block in blocks] == [
        (BIG, "active_allocated")
    ]
    actions = [
        (entry["action"], entry["size"])
        for entry in snapshot["device_traces"][0]
        if entry["size"] in (BIG, BIG + 512)
    ]
    assert ("alloc", BIG) in actions
    assert ("alloc", BIG + 512) in actions
    assert any(action.startswith("free") and size == BIG + 512 for action, size in actions)


def test_empty_cache_keeps_the_pool_s_pages(pool: MemoryPool) -> None:
    with pool:
        kept = bytes_on_gpu(BIG).fill_(5)
        torch.cuda.empty_cache()
        more = bytes_on_gpu(BIG).fill_(6)
    assert pool.stats().capacity_bytes == 1024 * MIB
    assert bool((kept == 5).all())
    assert bool((more == 6).all())


def test_mem_get_info(pool: MemoryPool) -> None:
    free, total = torch.cuda.mem_get_info()
    assert 0 < free <= total - 1024 * MIB
    with pool:
        kept = bytes_on_gpu(BIG)
        assert torch.cuda.mem_get_info()[1] == total
    assert kept.nbytes == BIG
    assert free - torch.cuda.mem_get_info()[0] < BIG  # the pool held it before


def test_the_process_s_fraction_limits_what_is_native(pool: MemoryPool) -> None:
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(0.005)
    try:
        assert torch.cuda.get_per_process_memory_fraction() == pytest.approx(0.005)
        with pytest.raises(torch.OutOfMemoryError):
            bytes_on_gpu(total // 100)
        with pool:
            assert bytes_on_gpu(900 * MIB).nbytes == 900 * MIB
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_accelerator_statistics(pool: MemoryPool) -> None:
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    with pool:
        kept = bytes_on_gpu(BIG)
    assert torch.accelerator.memory_allocated() - before == BIG
    assert torch.accelerator.max_memory_allocated() >= before + BIG
    assert torch.accelerator.memory_reserved() >= BIG
    assert torch.accelerator.memory_stats()["allocated_bytes.all.current"] >= BIG
    torch.accelerator.empty_cache()
    assert kept.nbytes == BIG


def test_host_and_device_of_a_tensor_are_as_ever(pool: MemoryPool) -> None:
    with pool:
        made = torch.ones(1000, device="cuda")
    assert made.device == torch.device("cuda", 0)
    assert made.untyped_storage().nbytes() == 4000
    assert made.data_ptr() % 512 == 0
    made.untyped_storage().resize_(8000)
    assert made.untyped_storage().nbytes() == 8000
