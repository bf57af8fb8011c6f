"""The arguments beyond PyTorch's: what they do, and what is refused with which text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import vramkit
from vramkit.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    LoaderClosedError,
    UnsupportedDeviceError,
)

DATA = TensorDataset(torch.arange(20.0))


class Squares(Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(float(index**2))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(10))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"device": "gpu"}, InvalidArgumentError, "device='gpu' is not a device"),
        ({"device": 1.5}, ArgumentTypeError, "got 1.5 of type float"),
        ({"device": "meta"}, UnsupportedDeviceError, "CUDA devices and in host memory"),
        ({"prefetch_batches": 2}, InvalidArgumentError, "needs device="),
        ({"prefetch_batches": -1, "device": "cpu"}, InvalidArgumentError, "must not be negative"),
        ({"prefetch_batches": 1.5, "device": "cpu"}, ArgumentTypeError, "must be an integer"),
        ({"workers": "fiber"}, InvalidArgumentError, "'process' or 'thread', got 'fiber'"),
        ({"transform": 3}, ArgumentTypeError, "transform must be callable, got int"),
        ({"staging_bytes": "2G"}, InvalidArgumentError, "staging_bytes '2G'"),
        ({"staging_bytes": 1.5}, ArgumentTypeError, "got 1.5 of type float"),
        ({"staging_bytes": 0}, InvalidArgumentError, "staging_bytes"),
        ({"num_workers": -1}, ValueError, "num_workers option should be non-negative"),
        ({"persistent_workers": True}, ValueError, "persistent_workers option needs num_workers"),
    ],
)
def test_what_is_refused(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        vramkit.DataLoader(DATA, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UnsupportedDeviceError, match="PyTorch sees none; leave device out"):
        vramkit.DataLoader(DATA, device="cuda")


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(
    "more", [{}, {"num_workers": 1}, {"num_workers": 2, "workers": "thread"}], ids=str
)
def test_a_transform_gets_each_batch_once(device: Any, more: Any) -> None:
    seen = []

    def negate(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return -batch

    loader = vramkit.DataLoader(Squares(), 8, transform=negate, device=device, **more)
    batches = list(loader)
    assert torch.equal(torch.cat(batches), -(torch.arange(20.0) ** 2))
    assert seen == [8, 8, 4]
    loader.close()


def test_threads_take_no_iterable_data_set_twice() -> None:
    loader = vramkit.DataLoader(Stream(), num_workers=2, workers="thread")
    with pytest.raises(InvalidArgumentError, match="Use num_workers=1"):
        iter(loader)
    one = vramkit.DataLoader(Stream(), batch_size=4, num_workers=1, workers="thread")
    assert [batch.tolist() for batch in one] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("in_order", [True, False])
def test_threads_yield_every_batch(in_order: bool) -> None:
    made = []
    loader = vramkit.DataLoader(
        Squares(),
        4,
        num_workers=2,
        workers="thread",
        in_order=in_order,
        worker_init_fn=made.append,
        persistent_workers=True,
    )
    for _ in range(2):
        batches = list(loader)
        values = torch.cat(batches)
        assert torch.equal(values.sort().values, torch.arange(20.0) ** 2)
        if in_order:
            assert torch.equal(values, torch.arange(20.0) ** 2)
    assert sorted(made) == [0, 1]
    loader.close()


def test_stats_count_what_was_done() -> None:
    with vramkit.DataLoader(Squares(), 4, num_workers=1) as loader:
        assert loader.stats().batches == 0
        list(loader)
        stats = loader.stats()
    assert (stats.path, stats.batches, stats.refused_batches) == ("workers", 5, 0)
    assert "Squares is not known to be arrays" in stats.reason
    assert stats.wait_s > 0
    assert stats.fetch_s > 0
    assert stats.staged_bytes == 5 * 16
    assert stats.staging_bytes >= stats.staged_bytes
    assert stats.pinned_bytes == 0


def test_a_closed_loader() -> None:
    loader = vramkit.DataLoader(Squares(), 4, num_workers=1)
    batches = iter(loader)
    first = next(batches)
    loader.close()
    loader.close()
    assert torch.equal(first, torch.tensor([0.0, 1.0, 4.0, 9.0]))
    with pytest.raises(LoaderClosedError, match="the loader is closed"):
        next(batches)
    with pytest.raises(LoaderClosedError, match="make a new one"):
        iter(loader)
