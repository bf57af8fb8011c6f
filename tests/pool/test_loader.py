"""DataLoader workers, by fork and by spawn, with the pool open in the parent."""

import multiprocessing

import pytest
import torch
from helpers.pools import is_in, is_native
from torch.utils.data import DataLoader, Dataset

from vramkit import MemoryPool

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class Rows(Dataset[torch.Tensor]):
    """Rows of a tensor, plus a fresh one."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        assert is_native(torch.empty(1000))
        return self.rows[index] + torch.ones(self.rows.shape[1])


class Scribbler(Dataset[int]):
    """Workers that overwrite and drop what they inherited."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows: torch.Tensor | None = rows

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if self.rows is not None:
            self.rows.fill_(-1)
            self.rows = None
        return index


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_batches_arrive(pool: MemoryPool, method: str) -> None:
    with pool:
        rows = torch.arange(40.0).reshape(20, 2)
        assert is_in(pool, rows)
        loader = DataLoader(
            Rows(rows),
            batch_size=4,
            num_workers=2,
            multiprocessing_context=multiprocessing.get_context(method),
        )
        batches = list(loader)
        doubled = [batch * 2 for batch in batches]
    assert torch.equal(torch.cat(batches), torch.arange(40.0).reshape(20, 2) + 1)
    assert all(is_in(pool, batch) for batch in doubled)


def test_forked_workers_cannot_change_the_parent(pool: MemoryPool) -> None:
    with pool:
        rows = torch.arange(100_000.0)
        before = pool.stats()
        context = multiprocessing.get_context("fork")
        loader = DataLoader(
            Scribbler(rows), batch_size=None, num_workers=2, multiprocessing_context=context
        )
        assert sorted(int(index) for index in loader) == list(range(8))
    assert pool.stats().live_bytes >= before.live_bytes
    assert torch.equal(rows, torch.arange(100_000.0))


def test_a_full_pool_does_not_stop_workers() -> None:
    pool = MemoryPool("16MiB", device="cpu")
    with pool:
        rows = torch.zeros(20, 2)
        hog = torch.empty(14 << 20, dtype=torch.uint8)
        context = multiprocessing.get_context("fork")
        loader = DataLoader(Rows(rows), num_workers=1, multiprocessing_context=context)
        assert sum(len(batch) for batch in loader) == 20
    assert hog.nbytes == 14 << 20


def test_a_tensor_of_the_pool_sent_to_a_spawned_process(pool: MemoryPool) -> None:
    context = torch.multiprocessing.get_context("spawn")
    with pool:
        sent = torch.arange(1000)
        queue = context.SimpleQueue()
        worker = context.Process(target=_send_back, args=(queue, sent))
        worker.start()
        total = queue.get()
        worker.join()
    assert worker.exitcode == 0
    assert total == 499_500


def _send_back(queue: "multiprocessing.queues.SimpleQueue[int]", tensor: torch.Tensor) -> None:
    queue.put(int(tensor.sum()))
