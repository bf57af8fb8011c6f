"""An iterable dataset with a state of its own goes on from it; nothing is iterated twice."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

import vramkit


class Counted(IterableDataset[Any]):
    """Numbers of this worker's share; the state is on the dataset."""

    def __init__(self, count: int, skip_shares: int = 0) -> None:
        self.count = count
        self.next = 0
        self.drawn = 0
        self.short = skip_shares

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        count = self.count - (self.short if worker == 0 else 0)
        while self.next < count:
            number = self.next * workers + worker
            self.next += 1
            self.drawn += 1
            yield torch.tensor([number, self.drawn])
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Walk(IterableDataset[Any]):
    """The same, with the state on the iterator."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> WalkIterator:
        return WalkIterator(self.count)


class WalkIterator:
    def __init__(self, count: int) -> None:
        info = get_worker_info()
        self.worker, self.workers = (0, 1) if info is None else (info.id, info.num_workers)
        self.count, self.next, self.drawn = count, 0, 0

    def __iter__(self) -> WalkIterator:
        return self

    def __next__(self) -> torch.Tensor:
        if self.next >= self.count:
            raise StopIteration
        self.next += 1
        self.drawn += 1
        return torch.tensor([(self.next - 1) * self.workers + self.worker, self.drawn])

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", [Counted, Walk])
@pytest.mark.parametrize("taken", [0, 1, 3, 4])
def test_it_goes_on_from_its_state(kind: Any, workers: int, device: Any, taken: int) -> None:
    def make() -> vramkit.DataLoader[Any]:
        return vramkit.DataLoader(kind(24), batch_size=4, num_workers=workers, device=device)

    first = make()
    batches = iter(first)
    for _ in range(taken):
        next(batches)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    rest = list(batches)
    second = make()
    second.load_state_dict(state)
    resumed = list(second)
    assert [batch[:, 0].tolist() for batch in resumed] == [batch[:, 0].tolist() for batch in rest]
    if taken and resumed and workers < 2:
        # What was yielded before was not drawn again.
        assert resumed[0][0, 1] == 1
    assert len(list(second)) == taken + len(rest)


def test_a_worker_that_has_ended_stays_ended() -> None:
    def make() -> vramkit.DataLoader[Any]:
        return vramkit.DataLoader(Counted(12, skip_shares=8), batch_size=2, num_workers=2)

    first = make()
    batches = iter(first)
    for _ in range(5):
        next(batches)
    state = first.state_dict()
    rest = [batch[:, 0].tolist() for batch in batches]
    second = make()
    second.load_state_dict(state)
    assert [batch[:, 0].tolist() for batch in second] == rest
    assert len(rest) > 1
