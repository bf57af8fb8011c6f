"""Growing, shrinking, giving back, ending: what the device's memory shows."""

import gc

import pytest
import torch
from helpers.gpu import ConvNet, assert_given_back, bytes_on_gpu, free_bytes, make_step, train
from helpers.pools import MIB, is_in, run_script

from vramkit import MemoryPool
from vramkit.errors import CapacityError, PoolBusyError


def test_trim_gives_memory_back_to_the_driver(pool: MemoryPool) -> None:
    with pool:
        kept, dropped = bytes_on_gpu(100 * MIB).fill_(5), bytes_on_gpu(600 * MIB).fill_(6)
    del dropped
    before = torch.cuda.mem_get_info()[0]
    released = pool.trim()
    assert released >= 600 * MIB
    assert torch.cuda.mem_get_info()[0] - before >= 600 * MIB
    assert pool.stats().capacity_bytes == 1024 * MIB
    with pool:
        again = bytes_on_gpu(900 * MIB).fill_(7)
    assert bool((kept == 5).all())
    assert bool((again == 7).all())


def test_what_was_never_mapped_is_given_back_too() -> None:
    before = free_bytes()
    pool = MemoryPool("8GiB", device="cuda")
    assert pool.trim() == 8 << 30
    assert pool.stats().held_bytes == 0
    assert_given_back(before)
    pool.close()
    pool = MemoryPool("8GiB", device="cuda")
    pool.resize("1GiB")
    assert pool.stats().held_bytes == 1 << 30
    assert before - free_bytes() < 1500 * MIB
    pool.resize("8GiB")
    assert before - free_bytes() >= 8 << 30
    pool.close()
    assert_given_back(before)


def test_resize_moves_the_device_s_memory() -> None:
    before = free_bytes()
    pool = MemoryPool("256MiB", device="cuda")
    with pool:
        kept = bytes_on_gpu(200 * MIB).fill_(1)
        with pytest.raises(torch.OutOfMemoryError):
            bytes_on_gpu(300 * MIB)
        pool.resize("768MiB")
        more = bytes_on_gpu(500 * MIB).fill_(2)
    assert before - torch.cuda.mem_get_info()[0] >= 768 * MIB
    with pytest.raises(PoolBusyError):
        pool.resize("256MiB")
    del more
    pool.resize("256MiB")
    assert before - torch.cuda.mem_get_info()[0] < 512 * MIB
    assert bool((kept == 1).all())
    total = torch.cuda.mem_get_info()[1]
    with pytest.raises(CapacityError, match=r"of cuda:0 only .* are free now"):
        pool.resize(2 * total)
    assert pool.stats().capacity_bytes == 256 * MIB
    del kept
    pool.close()
    assert_given_back(before)


def test_trim_and_resize_while_training() -> None:
    pool = MemoryPool("512MiB", device="cuda")
    sizes = ["512MiB", "768MiB", "640MiB"]
    with pool:
        torch.manual_seed(7)
        step = make_step(ConvNet().cuda())
        losses = []
        for index in range(24):
            losses.append(step())
            if index % 3 == 1:
                pool.trim()
            if index % 3 == 2:
                pool.resize(sizes[index // 3 % 3])
            if index % 8 == 7:
                pool._core.check()
        inside = torch.stack(losses).tolist()
    expected = train(24)
    assert inside == pytest.approx(expected, rel=1e-3)
    torch.cuda.synchronize()


def test_trim_under_running_kernels() -> None:
    """Unmapping what a kernel still uses would end the process."""
    pool = MemoryPool("256MiB", device="cuda")
    side = torch.cuda.Stream()
    with pool:
        for _ in range(5):
            source = bytes_on_gpu(128 * MIB).fill_(1)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                torch.cuda._sleep(50_000_000)
                source.add_(1)
            source.record_stream(side)
            del source
            pool.trim()
    torch.cuda.synchronize()
    pool._core.check()


def test_close_leaves_nothing() -> None:
    before = free_bytes()
    pool = MemoryPool("1GiB", device="cuda")
    with pool:
        train(2)
    pool.close()  # drops the workspaces of cuBLAS
    assert pool.closed
    assert_given_back(before)


def test_a_dropped_pool_leaves_nothing() -> None:
    before = free_bytes()
    pool = MemoryPool("1GiB", device="cuda")
    with pool:
        kept = bytes_on_gpu(100 * MIB)
    del pool
    gc.collect()
    assert before - free_bytes() >= 1024 * MIB
    del kept
    assert_given_back(before)


def test_close_names_what_remains() -> None:
    pool = MemoryPool("64MiB", device="cuda", record_stacks=True)
    with pool:
        kept = [bytes_on_gpu(8 * MIB), bytes_on_gpu(2 * MIB)]
    with pytest.raises(PoolBusyError) as caught:
        pool.close()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("cuda:0: cannot close: the pool still holds 2 live blocks ")
    assert lines[1] == "The 2 largest:"
    assert lines[2].startswith(f"       8.0 MiB at {kept[0].data_ptr():#x}, allocated at ")
    assert len(lines) == 4
    kept.clear()
    pool.close()


def test_close_waits_for_work_on_freed_memory() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    with pool:
        kept = bytes_on_gpu(32 * MIB)
        torch.cuda._sleep(100_000_000)
        kept.fill_(1)
        del kept
    pool.close()
    torch.cuda.synchronize()


def test_many_pools_in_turn() -> None:
    before = free_bytes()
    for index in range(30):
        pool = MemoryPool("256MiB", device="cuda")
        with pool:
            made = torch.full((100_000,), float(index), device="cuda")
        del pool
        assert float(made[0]) == index
    del made
    assert_given_back(before)


ENDS = {
    "a clean end": "",
    "an exception": "raise SystemExit(0)",
    "os._exit": "import os; os._exit(0)",
    "inside the scope": "pool.__enter__(); kept.append(torch.ones(100, device='cuda'))",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_process_ends_and_leaves_nothing(how: str) -> None:
    before = free_bytes()
    run_script(
        f"""
import torch, vramkit
pool = vramkit.MemoryPool("1GiB", device="cuda")
with pool:
    kept = [torch.ones(n, device="cuda") for n in (10, 1000, 1_000_000)]
    layer = torch.nn.Linear(100, 100, device="cuda")
    layer(torch.ones(5, 100, device="cuda")).sum().backward()
{ENDS[how]}
"""
    )
    assert_given_back(before)


def test_a_process_ends_while_memory_is_mapped_in_the_background() -> None:
    before = free_bytes()
    printed = run_script(
        """
        import os
        os.dup2(1, 2)
        import vramkit
        pool = vramkit.MemoryPool("16GiB", device="cuda")
        assert pool.stats().mapped_bytes < 16 << 30
        """
    )
    assert printed.strip() == ""
    assert_given_back(before)


def test_killed_in_the_middle_of_creation() -> None:
    before = free_bytes()
    run_script(
        """
        import multiprocessing, os, signal, time

        def make():
            import vramkit
            while True:
                vramkit.MemoryPool(0.5, device="cuda")

        if __name__ == "__main__":
            child = multiprocessing.get_context("fork").Process(target=make)
            child.start()
            time.sleep(6)
            assert child.is_alive()
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        """
    )
    assert_given_back(before)


def test_a_pool_serves_right_after_creation() -> None:
    """Pages that the background has not reached are mapped on demand."""
    pool = MemoryPool("4GiB", device="cuda")
    with pool:
        first = bytes_on_gpu(3 << 30).fill_(1)
    assert is_in(pool, first)
    assert bool((first == 1).all())
