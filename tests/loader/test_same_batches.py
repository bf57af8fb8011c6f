"""The same seed gives the same batches as PyTorch's loader, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import datasets as d
from helpers.batches import assert_parity
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

ROWS = 11
DATA: dict[str, Callable[[], Any]] = {
    "pixels": d.Pixels,
    "draws": d.Draws,
    "batched": d.Batched,
    "tensors": lambda: TensorDataset(torch.arange(ROWS * 3.0).view(ROWS, 3), torch.arange(ROWS)),
    "large_tensors": lambda: TensorDataset(torch.arange(ROWS * 9000).view(ROWS, 9000)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 4},
    "shuffle": {"batch_size": 4, "shuffle": True},
    "drop_last": {"batch_size": 4, "shuffle": True, "drop_last": True},
    "generator": {"batch_size": 3, "shuffle": True, "generator": torch.Generator},
    "whole": {"batch_size": 100},
    "one": {"shuffle": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("data", DATA)
def test_map_style(data: str, options: str) -> None:
    assert_parity(DATA[data](), epochs=2, **OPTIONS[options])


@pytest.mark.parametrize("options", ["plain", "generator"])
@pytest.mark.parametrize("data", DATA)
def test_map_style_with_workers(data: str, options: str) -> None:
    assert_parity(DATA[data](), num_workers=2, **OPTIONS[options])


@pytest.mark.parametrize("data", ["pixels", "draws", "tensors", "large_tensors"])
def test_persistent_workers_over_epochs(data: str) -> None:
    assert_parity(
        DATA[data](),
        epochs=3,
        num_workers=2,
        batch_size=3,
        shuffle=True,
        persistent_workers=True,
        prefetch_factor=3,
    )


@pytest.mark.parametrize("data", ["pixels", "tensors"])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_prefetching_draws_as_much(data: str, prefetch: int) -> None:
    assert_parity(
        DATA[data](), epochs=2, num_workers=1, batch_size=2, shuffle=True, prefetch_factor=prefetch
    )


class _Eager(Sampler):
    """Draws in __iter__ itself, which is called as often as PyTorch calls it."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        drawn = torch.randperm(ROWS).tolist()
        if self._batch_size == 0:
            return iter(drawn)
        return iter([drawn[at : at + 3] for at in range(0, ROWS, 3)])

    def __len__(self) -> int:
        return ROWS if self._batch_size == 0 else 4


class _Yields(Sampler):
    """Yields indices of a type of its own."""

    def __init__(self, convert: Callable[[int], Any]) -> None:
        self._convert = convert

    def __iter__(self) -> Iterator[Any]:
        return map(self._convert, [4, 1, 0, 3, 2])

    def __len__(self) -> int:
        return 5


SAMPLERS: dict[str, Callable[[], Any]] = {
    "random": lambda: RandomSampler(range(ROWS)),
    "replacement": lambda: RandomSampler(range(ROWS), replacement=True, num_samples=20),
    "more": lambda: RandomSampler(range(ROWS), num_samples=29),
    "fewer": lambda: RandomSampler(range(ROWS), num_samples=5),
    "twice": lambda: RandomSampler(range(ROWS), num_samples=2 * ROWS),
    "own": lambda: RandomSampler(range(ROWS), generator=torch.Generator().manual_seed(9)),
    "subset": lambda: SubsetRandomSampler([7, 1, 3, 3]),
    "weighted": lambda: WeightedRandomSampler([1.0] * ROWS, 7),
    "distributed": lambda: DistributedSampler(range(ROWS), num_replicas=2, rank=1, shuffle=True),
    "eager": lambda: _Eager(0),
    "list": lambda: [3, 1, 2],
    "range": lambda: range(2, 6),
    "tensors": lambda: _Yields(torch.tensor),
    "numpy": lambda: _Yields(np.int64),
    "strings": lambda: _Yields(str),
    "pairs": lambda: _Yields(lambda x: (x, x + 1)),
    "bools": lambda: _Yields(lambda x: x % 2 == 0),
    "floats": lambda: _Yields(float),
    "none": lambda: _Yields(lambda _: None),
    "huge": lambda: _Yields(lambda x: x << 80),
    "nothing": list,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("data", ["pixels", "tensors"])
def test_samplers(data: str, sampler: str) -> None:
    assert_parity(DATA[data](), sampler=SAMPLERS[sampler], batch_size=4, epochs=2)


@pytest.mark.parametrize("sampler", ["more", "own", "eager", "tensors", "floats"])
@pytest.mark.parametrize("data", ["pixels", "tensors"])
def test_samplers_with_workers(data: str, sampler: str) -> None:
    assert_parity(DATA[data](), sampler=SAMPLERS[sampler], batch_size=4, num_workers=1)


@pytest.mark.parametrize("sampler", ["numpy", "strings", "pairs", "none", "huge"])
def test_samplers_of_any_key(sampler: str) -> None:
    assert_parity(d.Keyed(), sampler=SAMPLERS[sampler], batch_size=2, num_workers=1)


class _Drawing(BatchSampler):
    """A subclass may do what it likes."""

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(3):
            yield torch.randint(0, ROWS, (2,)).tolist()


BATCH_SAMPLERS: dict[str, Callable[[], Any]] = {
    "batches": lambda: BatchSampler(RandomSampler(range(ROWS)), 3, False),
    "drop_last": lambda: BatchSampler(RandomSampler(range(ROWS), num_samples=29), 4, True),
    "lists": lambda: [[1, 2], [3], [], [0, 5, 7, 9]],
    "tuples": lambda: [(1, 2), (3,)],
    "tensors": lambda: [torch.tensor([1, 2]), torch.tensor([5])],
    "ranges": lambda: [range(3), range(5, 7)],
    "negative": lambda: [[-1, 2], [0, -11]],
    "outside": lambda: [[1], [ROWS], [2]],
    "far_outside": lambda: [[1], [-ROWS - 1], [2]],
    "subclass": lambda: _Drawing(range(ROWS), 2, False),
    "eager": lambda: _Eager(3),
}


@pytest.mark.parametrize("sampler", BATCH_SAMPLERS)
@pytest.mark.parametrize("data", ["pixels", "tensors", "large_tensors"])
def test_batch_samplers(data: str, sampler: str) -> None:
    assert_parity(DATA[data](), batch_sampler=BATCH_SAMPLERS[sampler], epochs=2)


@pytest.mark.parametrize("sampler", ["drop_last", "lists", "outside", "eager", "ranges"])
@pytest.mark.parametrize("data", ["pixels", "tensors"])
def test_batch_samplers_with_workers(data: str, sampler: str) -> None:
    assert_parity(DATA[data](), batch_sampler=BATCH_SAMPLERS[sampler], num_workers=1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "options", [{"batch_size": 4}, {"batch_size": None}, {"batch_size": 3, "drop_last": True}]
)
def test_streams(options: dict[str, Any], workers: int) -> None:
    assert_parity(d.Stream(), num_workers=workers, **options)


def test_persistent_workers_over_streams() -> None:
    assert_parity(d.Stream(), epochs=3, num_workers=2, batch_size=2, persistent_workers=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_without_batches(workers: int) -> None:
    assert_parity(d.Pixels(), batch_size=None, shuffle=True, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_sampler_as_sampler(workers: int) -> None:
    """The way in which datasets that make batches themselves are used."""
    assert_parity(
        DATA["tensors"](),
        batch_size=None,
        sampler=BATCH_SAMPLERS["batches"],
        num_workers=workers,
    )


COLLATES = [d.keep_list, d.to_custom, d.to_sample, d.to_point, d.to_mixture]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", COLLATES)
def test_collate_functions(collate: Any, workers: int) -> None:
    assert_parity(d.Pixels(), batch_size=4, shuffle=True, collate_fn=collate, num_workers=workers)


def _seed_again(worker: int) -> None:
    torch.manual_seed(1000 + worker)


@pytest.mark.parametrize("data", ["draws", "tensors"])
def test_worker_init_fn(data: str) -> None:
    assert_parity(DATA[data](), batch_size=2, num_workers=2, worker_init_fn=_seed_again)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_other_contexts(context: str) -> None:
    assert_parity(
        d.Pixels(),
        epochs=2,
        batch_size=4,
        shuffle=True,
        num_workers=1,
        multiprocessing_context=context,
        persistent_workers=True,
        collate_fn=d.to_mixture,
        worker_init_fn=_seed_again,
    )


def test_a_context_object() -> None:
    context = torch.multiprocessing.get_context("fork")
    assert_parity(d.Pixels(), batch_size=4, num_workers=1, multiprocessing_context=context)


def test_batches_out_of_order_are_all_there() -> None:
    import vramkit

    loader = vramkit.DataLoader(d.Pixels(20), batch_size=3, num_workers=2, in_order=False)
    labels = [label for _, labels in loader for label in labels.tolist()]
    assert sorted(labels) == list(range(20))


@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_few_samples(length: int, drop_last: bool) -> None:
    for dataset in (d.Pixels(length), TensorDataset(torch.arange(length))):
        assert_parity(dataset, batch_size=3, drop_last=drop_last)
    assert_parity(d.Pixels(length), batch_size=3, num_workers=1, drop_last=drop_last)


class _Lies(d.Pixels):
    """Says that it has more samples, or fewer, than it has."""

    def __len__(self) -> int:
        return self.said

    def __init__(self, said: int) -> None:
        super().__init__(5)
        self.said = said


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("said", [0, 3, 9])
def test_a_data_set_that_lies_about_its_length(said: int, workers: int) -> None:
    assert_parity(_Lies(said), batch_size=2, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_longer_than_it_says_warns(workers: int) -> None:
    import vramkit

    loader = vramkit.DataLoader(d.LyingStream(), batch_size=2, num_workers=workers)
    assert len(loader) == 2
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    with pytest.warns(UserWarning, match="was reported to be 3"):
        next(iterator)


def test_data_pipes() -> None:
    from torch.utils.data.datapipes.iter import IterableWrapper
    from torch.utils.data.datapipes.map import SequenceWrapper

    stream = IterableWrapper(list(range(10))).shuffle().sharding_filter()
    for workers in (0, 2):
        assert_parity(stream, epochs=2, batch_size=2, shuffle=True, num_workers=workers)
        assert_parity(SequenceWrapper(list(range(7))), batch_size=2, num_workers=workers)


def test_many_samples_in_a_batch() -> None:
    """A list of indices larger than a message."""
    assert_parity(d.Pixels(30_000, elements=1), batch_size=15_000, shuffle=True, num_workers=1)


def test_batches_that_grow_and_shrink() -> None:
    sizes = [1, 60, 2, 300, 1, 5]
    ends = list(itertools.accumulate(sizes))
    batches = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    assert_parity(d.Pixels(ends[-1]), epochs=2, batch_sampler=lambda: batches, num_workers=1)
