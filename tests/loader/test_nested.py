"""Datasets that use loaders and default_collate themselves, inside a worker."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import datasets as d
from helpers.batches import assert_parity
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, TensorDataset, default_collate

import vramkit


class _Caching(Dataset):
    """Keeps what it has collated."""

    def __init__(self) -> None:
        self.rows: Any = None

    def make(self) -> Any:
        return default_collate([torch.full((1000,), float(row)) for row in range(30)])

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        if self.rows is None:
            self.rows = self.make()
        return self.rows[index]


class _Nested(_Caching):
    """Keeps the batches of a loader of its own."""

    def __init__(self, kind: Any, dataset: Any) -> None:
        super().__init__()
        self.kind, self.dataset = kind, dataset

    def make(self) -> Any:
        return [batch[0][0] for batch in self.kind(self.dataset, batch_size=1)]


def _assert_rows(dataset: Any) -> None:
    # Batches are dropped at once, so that their slots are used again.
    loader = vramkit.DataLoader(dataset, batch_size=3, num_workers=1)
    rows = [row for batch in loader for row in batch.double().mean(1).tolist()]
    assert rows == sorted(rows)
    assert len(set(rows)) == 30


def test_collated_tensors_outlive_their_batch() -> None:
    _assert_rows(_Caching())


@pytest.mark.parametrize("kind", [TorchDataLoader, vramkit.DataLoader])
def test_a_loader_in_a_data_set(kind: Any) -> None:
    _assert_rows(_Nested(kind, d.Pixels(30)))


@pytest.mark.parametrize("kind", [TorchDataLoader, vramkit.DataLoader])
def test_an_array_loader_in_a_data_set(kind: Any) -> None:
    rows = TensorDataset(torch.arange(30.0).repeat_interleave(20_000).view(30, -1))
    # The parent has gathered before it forks.
    assert len(list(vramkit.DataLoader(rows, batch_size=4))) == 8
    _assert_rows(_Nested(kind, rows))


class _Stops(d.Pixels):
    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise StopIteration
        return super().__getitem__(index)


@pytest.mark.parametrize("elements", [1, 1024])
def test_stop_iteration_in_a_data_set(elements: int) -> None:
    assert_parity(_Stops(elements=elements), batch_size=4, num_workers=1)


def test_rows_without_elements_have_bounds() -> None:
    assert_parity(TensorDataset(torch.empty(5, 0)), batch_sampler=lambda: [[1], [7]])


@pytest.mark.parametrize("columns", [2, 20_000])
def test_the_default_device_changes_nothing(columns: int) -> None:
    data = TensorDataset(torch.arange(12.0).repeat_interleave(columns).view(12, -1))
    for options in ({}, {"batch_sampler": [[1, 2], [0]]}, {"num_workers": 1}):
        iterator = iter(vramkit.DataLoader(data, **options))
        with torch.device("meta"):
            batches = list(iterator)
        assert {batch.device.type for (batch,) in batches} == {"cpu"}
