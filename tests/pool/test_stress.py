"""Patterns written at allocation and verified at free, in a tight pool, from several threads."""

import random
import threading

import pytest
import torch
from helpers.pools import MIB, is_in
from helpers.seeds import stress_seed

from vramkit import MemoryPool

ROUNDS = 1500


class _Worker(threading.Thread):
    """Keeps up to 1 / ``share`` of the pool alive and checks each tensor when it drops it."""

    def __init__(self, pool: MemoryPool, seed: int, share: int) -> None:
        super().__init__()
        self.pool, self.random = pool, random.Random(seed)
        self.budget = int(pool.stats().capacity_bytes * 1.3) // share
        self.kept: list[tuple[torch.Tensor, int]] = []
        self.out_of_memory = 0
        self.failures: list[str] = []

    def run(self) -> None:
        for _ in range(ROUNDS):
            size = int(2 ** self.random.uniform(8, 22.5))
            while self.kept and self._live() + size > self.budget:
                self._drop()
            self._make(size)
        while self.kept:
            self._drop()

    def _live(self) -> int:
        return sum(tensor.nbytes for tensor, _ in self.kept)

    def _make(self, size: int) -> None:
        value = self.random.randrange(256)
        try:
            self.kept.append((torch.full((size,), value, dtype=torch.uint8), value))
        except torch.OutOfMemoryError:
            self.out_of_memory += 1
            if self.kept:
                self._drop()

    def _drop(self) -> None:
        tensor, value = self.kept.pop(self.random.randrange(len(self.kept)))
        # NumPy's intermediate results are not the pool's.
        if not bool((tensor.numpy() == value).all()):
            self.failures.append(f"{tensor.nbytes} bytes at {tensor.data_ptr():#x} changed")
        if not is_in(self.pool, tensor):
            self.failures.append(f"{tensor.nbytes} bytes are not the pool's")


@pytest.mark.parametrize("threads", [1, 3])
def test_no_two_tensors_share_memory(threads: int) -> None:
    seed = stress_seed()
    # Small pages, so that stitching has much to join.
    pool = MemoryPool("24MiB", device="cpu", page_bytes="64KiB")
    workers = [_Worker(pool, seed + index, threads) for index in range(threads)]
    with pool:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    pool._core.check()
    assert [worker.failures for worker in workers] == [[]] * threads
    stats = pool.stats()
    assert (stats.live_blocks, stats.live_bytes, stats.pending_bytes) == (0, 0, 0)
    assert stats.failures == sum(worker.out_of_memory for worker in workers)
    # The budget is above the capacity: the run must have met what it is for.
    assert stats.failures > 0
    assert stats.stitched_requests > 0
    with pool:
        whole = torch.full((24 * MIB,), 1, dtype=torch.uint8)
    assert int(whole.numpy().sum()) == 24 * MIB
    del whole
    pool.close()
