"""How a pool on a GPU is asked for, and what it takes of the device."""

import pytest
import torch
from helpers.gpu import assert_given_back, bytes_on_gpu, free_bytes
from helpers.pools import MIB, is_in, run_script

from vramkit import MemoryPool
from vramkit.errors import CapacityError, InvalidArgumentError


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda"), 0, None])
def test_devices(device: str | int | torch.device | None) -> None:
    pool = MemoryPool("64MiB", device=device)
    assert repr(pool).startswith("<MemoryPool device='cuda:0' capacity=64.0 MiB live=0 ")
    with pool:
        assert is_in(pool, torch.empty(1000, device="cuda"))
        assert is_in(pool, torch.empty(1000, device="cuda:0"))
        assert not is_in(pool, torch.empty(1000))


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InvalidArgumentError, match="there is no CUDA device 99; this process sees"):
        MemoryPool("64MiB", device=99)


def test_a_part_of_the_free_memory() -> None:
    free = torch.cuda.mem_get_info()[0]
    capacity = MemoryPool(0.01, device="cuda").stats().capacity_bytes
    assert 0.008 * free < capacity <= 0.012 * free


def test_capacity_is_rounded_down_to_pages() -> None:
    stats = MemoryPool(23 * MIB - 1, device="cuda").stats()
    assert (stats.page_bytes, stats.capacity_bytes) == (2 * MIB, 22 * MIB)
    stats = MemoryPool(23 * MIB - 1, device="cuda", page_bytes="4MiB").stats()
    assert (stats.page_bytes, stats.capacity_bytes) == (4 * MIB, 20 * MIB)


def test_pages_below_the_granularity_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="granularity"):
        MemoryPool("64MiB", device="cuda", page_bytes="64KiB")


def test_more_than_is_free_fails_at_once_and_leaves_nothing() -> None:
    before = free_bytes()
    total = torch.cuda.mem_get_info()[1]
    for capacity in (total, 10 * total, before + 64 * MIB):
        with pytest.raises(CapacityError, match=r"of cuda:0 only .* are free now"):
            MemoryPool(capacity, device="cuda")
    assert_given_back(before)


def test_what_pytorch_caches_is_named() -> None:
    cached = bytes_on_gpu(512 * MIB)
    del cached
    free, total = torch.cuda.mem_get_info()
    with pytest.raises(CapacityError, match=r"keeps [0-9.,]+ MiB that no tensor uses: torch"):
        MemoryPool(min(free + 64 * MIB, total), device="cuda")


def test_the_driver_s_refusal_is_a_capacity_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The memory is taken by somebody else after we looked."""
    before = free_bytes()
    total = torch.cuda.mem_get_info()[1]
    monkeypatch.setattr("vramkit.pool._cuda.free_bytes", lambda _: total)
    with pytest.raises(CapacityError, match=r"cuda:0 has no memory for .* are free; ask for less"):
        MemoryPool(total, device="cuda")
    assert_given_back(before)


def test_the_whole_capacity_is_taken_at_creation() -> None:
    before = free_bytes()
    pool = MemoryPool("512MiB", device="cuda")
    assert before - torch.cuda.mem_get_info()[0] >= 512 * MIB
    pool.close()
    assert_given_back(before)


def test_after_cuda_was_in_use() -> None:
    run_script(
        """
        import torch
        early = torch.ones(1000, 1000, device="cuda")
        early = early @ early
        from vramkit import MemoryPool
        from vramkit._core import owner
        with MemoryPool("64MiB", device="cuda") as pool:
            late = torch.ones(1000, device="cuda") + 1
            assert owner(late.data_ptr()) and not owner(early.data_ptr())
        del early
        torch.cuda.empty_cache()
        assert float(late.sum()) == 2000
        """
    )


def test_before_cuda_was_in_use() -> None:
    run_script(
        """
        from vramkit import MemoryPool
        with MemoryPool("64MiB", device="cuda") as pool:
            import torch
            assert pool.stats().live_blocks == 0
            x = torch.ones(1000, device="cuda")
            assert pool.stats().live_blocks == 1
        """
    )
