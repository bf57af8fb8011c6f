"""Datasets that are arrays: which are gathered, and that the batches are PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import assert_same
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    StackDataset,
    Subset,
    TensorDataset,
)

import vramkit
from vramkit.errors import InvalidArgumentError
from vramkit.loader._arena import Arena
from vramkit.loader._arrays import find_arrays
from vramkit.loader._gathering import Gathering, Job
from vramkit.loader._slot_memory import OwnMemory


class Declared(Dataset[Any]):
    """Samples are rows of whatever arrays it is given."""

    def __init__(self, arrays: Any, count: int) -> None:
        self.arrays, self.count = arrays, count
        self.fetched = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.fetched += 1
        return _row(self.arrays, index)

    def __vramkit_arrays__(self) -> Any:
        return self.arrays


class Doubling(Declared):
    """Makes other samples of them, and says nothing of its own about arrays."""

    def __getitem__(self, index: int) -> Any:
        return _row(self.arrays, index) * 2


class NotDeclared(Declared):
    """An object that says no where its class says yes."""

    def __init__(self, arrays: Any, count: int) -> None:
        super().__init__(arrays, count)
        self.__vramkit_arrays__ = None  # type: ignore[assignment, method-assign]


def _row(arrays: Any, index: int) -> Any:
    if isinstance(arrays, dict):
        return {key: _row(value, index) for key, value in arrays.items()}
    if isinstance(arrays, (tuple, list)):
        return type(arrays)(_row(value, index) for value in arrays)
    return arrays[index]


def assert_gathered(dataset: Any, **options: Any) -> None:
    """Two epochs of all kinds of loaders are PyTorch's and come from the arrays."""
    for more in ({"shuffle": True}, {"num_workers": 1}, {"sampler": [3, 0, 3], "drop_last": True}):
        batches = []
        for kind in (DataLoader, vramkit.DataLoader):
            torch.manual_seed(0)
            loader = kind(dataset, batch_size=4, **more, **options)
            batches.append([list(loader), list(loader)])
        assert_same(batches[1], batches[0])
        assert loader.stats().path == "arrays"
        assert loader.stats().reason == ""


NUMBERS = torch.arange(23)
ROWS = TensorDataset(torch.randn(23, 3, 5), NUMBERS, NUMBERS.to(torch.bfloat16))
LARGE = TensorDataset(torch.randn(23, 20_000), NUMBERS)


@pytest.mark.parametrize(
    "dataset",
    [
        ROWS,
        LARGE,
        Subset(ROWS, range(22, 2, -3)),
        Subset(Subset(LARGE, [7, 1, 9, 4, 2]), [4, 3, 2, 1, 0, 0]),
        StackDataset(ROWS, Subset(LARGE, list(range(22, -1, -1)))),
        StackDataset(first=ROWS, second=TensorDataset(NUMBERS)),
        ConcatDataset([ROWS, Subset(ROWS, [5, 4]), ROWS]),
        ConcatDataset([LARGE, LARGE]),
        TensorDataset(torch.randn(5, 23, 2).transpose(0, 1)[:, 2], NUMBERS),
        TensorDataset(torch.randn(46, 30_000)[::2], torch.ones(1).expand(23)),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_torchs_own_data_sets(dataset: Any) -> None:
    assert_gathered(dataset)


@pytest.mark.parametrize(
    "arrays",
    [
        torch.randn(11, 4),
        np.arange(11.0),
        np.arange(11, dtype=np.int16).reshape(11, 1),
        np.random.default_rng(0).random((22, 25_000), np.float32)[::2],
        (torch.randn(11), {"x": np.ones((11, 2), bool), "y": [np.arange(11, dtype=np.uint8)]}),
    ],
    ids=["tensor", "one value", "integers", "every other row", "nested"],
)
def test_declared_arrays(arrays: Any) -> None:
    dataset = Declared(arrays, 11)
    assert_gathered(dataset)
    dataset.fetched = 0
    list(vramkit.DataLoader(dataset, batch_size=3))
    assert dataset.fetched == 0


def test_a_memory_map(tmp_path: Any) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).random((40, 9_000), np.float32))
    rows = np.load(path, mmap_mode="r")
    batches = list(vramkit.DataLoader(Declared(rows, 40), batch_size=16))
    assert torch.equal(torch.cat(batches), torch.from_numpy(np.array(rows)))


@pytest.mark.parametrize(
    ("dataset", "options", "reason"),
    [
        (Doubling(torch.randn(11), 11), {}, "Doubling has another __getitem__() than Declared"),
        (Declared(torch.randn(12), 11), {}, "has 11 samples, but the arrays"),
        (
            Declared({"x": torch.randn(11), "y": (torch.randn(3), torch.randn(11))}, 11),
            {},
            r"['x']: 11, ['y'][0]: 3, ['y'][1]: 11",
        ),
        (Declared(np.ones((11, 3)).view(np.matrix), 11), {}, "got matrix"),
        (Declared(np.ma.masked_array(np.ones((11, 3))), 11), {}, "got MaskedArray"),
        (list(torch.randn(11, 3)), {}, "a TensorDataset of the samples stacked"),
        (NotDeclared(torch.randn(11), 11), {}, "must be a method, got NoneType"),
        (Declared("rows", 11), {}, "must return tensors, numpy arrays"),
        (Declared(np.array([object()] * 11), 11), {}, "dtype object"),
        (Declared(np.arange(11)[::-1], 11), {}, "run backwards in memory"),
        (Declared(torch.randn(11, 3, 4).transpose(1, 2), 11), {}, "are not contiguous"),
        (TensorDataset(torch.randn(11, requires_grad=True)), {}, "requires_grad=True"),
        (ROWS, {"collate_fn": list}, "collate_fn is not default_collate"),
        (ROWS, {"batch_size": None}, "batch_size=None"),
        (ROWS, {"worker_init_fn": print, "num_workers": 1}, "worker_init_fn"),
        (ConcatDataset([ROWS, LARGE]), {}, "samples of different length"),
        (ConcatDataset([TensorDataset(NUMBERS), TensorDataset(NUMBERS.float())]), {}, "differ"),
        (Subset(ROWS, [1, 99]), {}, "outside of 0 to 22"),
    ],
)
def test_what_is_not_gathered_says_why(dataset: Any, options: Any, reason: str) -> None:
    loader = vramkit.DataLoader(dataset, **options)
    iter(loader)
    stats = loader.stats()
    assert stats.path != "arrays"
    assert reason in stats.reason
    loader.close()


def test_tensors_are_datasets() -> None:
    rows, labels = torch.randn(11, 40), torch.arange(11)
    assert_gathered(rows)
    assert_gathered(StackDataset(x=rows, y=labels))
    assert_gathered(Subset(labels, [4, 2, 2]))


def test_a_subclass_with_samples_of_its_own_is_asked() -> None:
    rows = torch.randn(11)
    (batch,) = vramkit.DataLoader(Doubling(rows, 11), batch_size=11)
    assert torch.equal(batch, rows * 2)


@pytest.mark.parametrize("indices", [[3, -1, 2], [0, 23], ["a"], [1.0]])
def test_indices_are_torchs_matter(indices: list[Any]) -> None:
    outcomes = []
    for kind in (DataLoader, vramkit.DataLoader):
        try:
            outcomes.append(list(kind(ROWS, batch_size=4, sampler=indices)))
        except Exception as err:  # noqa: BLE001 - compared
            outcomes.append([type(err), str(err)])
    if isinstance(outcomes[0][0], type):
        assert outcomes[1] == outcomes[0]
    else:
        assert_same(outcomes[1], outcomes[0])


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_dtypes_that_few_operators_know(dtype: torch.dtype) -> None:
    data = TensorDataset(torch.arange(6).to(dtype))
    with vramkit.DataLoader(data, batch_size=4) as loader:
        assert_same(list(loader), list(DataLoader(data, batch_size=4)))


def test_a_dropped_batch_waits_for_all_of_its_parts() -> None:
    class Waits:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def wait(self, ticket: int) -> bool:
            self.asked.append(ticket)
            if ticket == 2:
                raise InvalidArgumentError("the ticket was waited for before the interrupt")
            return True

    gatherer: Any = Waits()
    job = Job(gatherer, None, None)
    job.add(1)
    job.add(2)
    del job
    assert gatherer.asked == [2, 1]


def test_a_batch_size_beyond_the_data_prepares_for_the_data() -> None:
    with Arena(1 << 30, memory=OwnMemory(inherited=False)) as arena:
        Gathering(find_arrays(LARGE), arena).prepare(3, 10**12)
        batch_bytes = sum(each.nbytes for each in LARGE.tensors)
        assert 3 * batch_bytes <= arena.capacity_bytes < 4 * batch_bytes


def test_too_little_staging_memory_for_the_gpu_is_told_once() -> None:
    with Arena(1 << 20, memory=OwnMemory(inherited=False)) as arena:
        gathering = Gathering(find_arrays(LARGE), arena)
        with pytest.warns(RuntimeWarning, match=r"3 batches of .* more than staging_bytes=1048576"):
            gathering.prepare(3, 16)
        gathering.prepare(3, 16)
