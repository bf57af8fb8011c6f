"""Forked children: copy-on-write, native allocation, no deadlock, no doubled memory."""

import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.pools import MIB, is_in, is_native

from vramkit import MemoryPool
from vramkit.errors import ForkedPoolError
from vramkit.pool import _adapter

# Python 3.12 warns of forks of a process with threads: that is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

CHILD_LIMIT_S = 60


def _run_child(work: Callable[[], object]) -> None:
    """Run in a forked child and assert that it ends well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # OpenMP's threads are not in the child; DataLoader's workers do the same.
            torch.set_num_threads(1)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the parent shows what it prints
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    _expect_good_end(child)


def _expect_good_end(child: int) -> None:
    deadline = time.monotonic() + CHILD_LIMIT_S
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"child {child} did not end within {CHILD_LIMIT_S} s")
        time.sleep(0.001)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_child_s_writes_stay_its_own(pool: MemoryPool) -> None:
    with pool:
        tensor = torch.arange(MIB)

        def work() -> None:
            assert int(tensor.sum()) == MIB * (MIB - 1) // 2
            tensor.fill_(7)
            assert bool((tensor == 7).all())

        _run_child(work)
    assert torch.equal(tensor, torch.arange(MIB))


def test_writes_to_stitched_memory_stay_the_child_s_own() -> None:
    pool = MemoryPool("64MiB", device="cpu")
    with pool:
        kept = [torch.zeros(8 * MIB, dtype=torch.uint8) for _ in range(8)]
        del kept[::2]
        stitched = torch.full((30 * MIB,), 5, dtype=torch.uint8)
    assert pool.stats().stitched_requests == 1

    def work() -> None:
        assert bool((stitched == 5).all())
        stitched.fill_(6)
        for tensor in kept:
            tensor.fill_(9)

    _run_child(work)
    assert bool((stitched == 5).all())
    assert not any(bool(tensor.any()) for tensor in kept)


def test_the_child_s_frees_stay_its_own(pool: MemoryPool) -> None:
    with pool:
        held = [torch.full((MIB,), index) for index in range(8)]
    before = pool.stats()

    def work() -> None:
        held.clear()
        gc.collect()

    _run_child(work)
    assert pool.stats() == before
    assert [int(tensor[MIB - 1]) for tensor in held] == list(range(8))


def test_the_child_allocates_natively(pool: MemoryPool) -> None:
    with pool:
        held = torch.ones(100)
        filler = torch.empty(250 * MIB, dtype=torch.uint8)

        def work() -> None:
            # The parent's pool is full, and its scope is still open.
            made = [torch.full((4 * MIB,), index, dtype=torch.uint8) for index in range(20)]
            assert all(is_native(tensor) for tensor in made)
            assert all(bool((tensor == index).all()) for index, tensor in enumerate(made))
            held.resize_(1000)
            assert held[:100].sum() == 100
            torch.nn.Linear(10, 10)(torch.ones(3, 10)).sum().backward()

        _run_child(work)
        assert is_in(pool, torch.empty(1000))
    assert filler.nbytes == 250 * MIB


def test_the_child_cannot_enter_the_parent_s_pool(pool: MemoryPool) -> None:
    @pool
    def decorated() -> torch.Tensor:
        return torch.empty(1000)

    with pool:

        def work() -> None:
            for enter in (pool.__enter__, pool.activate, decorated):
                with pytest.raises(ForkedPoolError, match="parent"):
                    enter()
            assert is_native(torch.empty(1000))
            with pool.outside():
                assert is_native(torch.empty(1000))
            assert pool.capacity_bytes == 256 * MIB
            pool.deactivate()

        _run_child(work)
        assert is_in(pool, decorated())


def test_the_child_leaves_the_scopes_that_it_inherits(pool: MemoryPool) -> None:
    other = MemoryPool("64MiB", device="cpu")
    pool.__enter__()
    other.__enter__()

    def work() -> None:
        pool.__exit__(None, None, None)
        other.__exit__(None, None, None)
        assert is_native(torch.empty(1000))

    _run_child(work)
    assert is_in(other, torch.empty(1000))
    pool.__exit__(None, None, None)
    other.__exit__(None, None, None)
    assert is_native(torch.empty(1000))


def test_the_child_drops_the_pool_and_makes_its_own() -> None:
    inherited = MemoryPool("64MiB", device="cpu")
    with inherited:
        tensor = torch.ones(1000)
    holder = [inherited]
    del inherited

    def work() -> None:
        with pytest.raises(ForkedPoolError):
            holder[0].stats()
        assert "of the parent process" in repr(holder[0])
        holder.clear()
        gc.collect()
        assert tensor.sum() == 1000
        own = MemoryPool("64MiB", device="cpu")
        with own:
            assert is_in(own, torch.ones(1000))

    _run_child(work)
    assert holder[0].stats().live_blocks == 1
    assert tensor.sum() == 1000


def test_a_fork_while_an_adapter_is_being_installed() -> None:
    def work() -> None:
        with MemoryPool("64MiB", device="cpu") as own:
            assert is_in(own, torch.ones(1000))

    with _adapter._installing.lock:
        _run_child(work)


def test_a_grandchild(pool: MemoryPool) -> None:
    with pool:
        tensor = torch.arange(1000)

        def work() -> None:
            def deeper() -> None:
                tensor.fill_(1)
                assert is_native(torch.ones(1000))

            _run_child(deeper)
            assert tensor.sum() == 499_500

        _run_child(work)
    assert tensor.sum() == 499_500


@pytest.mark.slow
def test_hundreds_of_forks_under_allocating_threads(pool: MemoryPool) -> None:
    stop = threading.Event()
    failures: list[str] = []

    def churn(seed: int) -> None:
        sizes = [100, 5000, 70_000, 400_000]
        kept: list[torch.Tensor] = []
        step = seed
        while not stop.is_set():
            step += 1
            kept.append(torch.full((sizes[step % 4],), step % 100, dtype=torch.uint8))
            if len(kept) > 20:
                oldest = kept.pop(step % 7)
                if int(oldest[0]) != int(oldest[-1]):
                    failures.append(f"torn tensor at step {step}")
            # Else this thread could hold the GIL for most of the time.
            time.sleep(0.0002)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
    inherited = torch.ones(0)
    with pool:
        inherited = torch.ones(10_000)
        for thread in threads:
            thread.start()
        try:
            for _ in range(300):
                _fork_once(inherited)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert inherited.sum() == 10_000


def _fork_once(inherited: torch.Tensor) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Without operators that OpenMP would run: its threads are not in the child.
            torch.empty(1000)
            torch.empty(MIB)
            inherited.resize_(20_000)
            del inherited
            status = 0
        finally:
            os._exit(status)
    _expect_good_end(child)


def test_two_children_do_not_double_the_memory() -> None:
    """Free memory of the pool is not the children's: the parent's reuse of it copies nothing."""
    pool = MemoryPool("384MiB", device="cpu")
    with pool:
        kept = torch.full((64 * MIB,), 1, dtype=torch.uint8)
        torch.full((256 * MIB,), 2, dtype=torch.uint8)
        children, release = _sleeping_children(2)
        try:
            before = _proportional_bytes(os.getpid(), *children)
            reused = torch.full((256 * MIB,), 3, dtype=torch.uint8)
            after = _proportional_bytes(os.getpid(), *children)
            kept.fill_(4)
            copied = _proportional_bytes(os.getpid(), *children) - after
        finally:
            os.close(release)
        for child in children:
            _expect_good_end(child)
    assert bool((reused == 3).all())
    # Copying would add 256 MiB or more; dropped in the children, nothing is there to be copied.
    assert after - before < 96 * MIB
    # The measure sees copies: those of live memory, which the children do share.
    assert copied > 48 * MIB


def _sleeping_children(count: int) -> tuple[list[int], int]:
    """Children that wait; they end when the returned descriptor is closed."""
    wait, release = os.pipe()
    ready, tell = os.pipe()
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os.close(release)
            os.write(tell, b".")
            os.read(wait, 1)
            os._exit(0)
        children.append(child)
    os.close(wait)
    for _ in children:
        assert os.read(ready, 1) == b"."
    os.close(ready)
    os.close(tell)
    return children, release


def _proportional_bytes(*processes: int) -> int:
    """Physical memory of the processes together: shared pages are counted once."""
    total = 0
    for process in processes:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
        total += next(int(line.split()[1]) for line in rollup.splitlines() if "Pss:" in line)
    return total * 1024
