"""Rows that the GPU copies straight from a dataset's own memory, by way of ``DataLoader``."""

from __future__ import annotations

import gc
import math
import mmap
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mappings import tensor_with_own_mapping
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import StackDataset, Subset, TensorDataset

import vramkit
from vramkit._core import has_batched_copies
from vramkit.loader import _registered_rows as module

pytestmark = pytest.mark.gpu

COUNT = 600
SHAPE = (3, 224, 224)


@pytest.fixture(autouse=True)
def _batched_copies(_clean_device: None) -> None:
    if not has_batched_copies():
        pytest.skip("the CUDA driver has no batched copies")


def random_images() -> torch.Tensor:
    size = COUNT * math.prod(SHAPE)
    return tensor_with_own_mapping(size).random_(0, 256).view(COUNT, *SHAPE)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images()


def loaded(loader: Any) -> list[Any]:
    return [[each.cpu() for each in batch] for batch in loader]


def assert_same_epochs(
    dataset: Any, registered: bool, staging_bytes: str | None = None, **options: Any
) -> None:
    """The batches are PyTorch's; whether their rows came from registered memory is as told."""
    torch.manual_seed(1)
    theirs = [loaded(TorchDataLoader(dataset, 32, **options)) for _ in range(2)]
    torch.manual_seed(1)
    with vramkit.DataLoader(
        dataset, 32, device="cuda", staging_bytes=staging_bytes, **options
    ) as loader:
        for expected in theirs:
            got = loaded(loader)
            assert len(got) == len(expected)
            for ours, other in zip(got, expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))
        stats = loader.stats()
        assert stats.path == "arrays"
        assert (stats.registered_bytes > 0) == registered, stats.not_registered
    assert loader.stats().registered_bytes == 0


@pytest.mark.parametrize("options", [{"shuffle": True}, {}, {"drop_last": True}])
def test_batches_are_torchs(images: torch.Tensor, options: dict[str, Any]) -> None:
    labels = torch.arange(COUNT)
    assert_same_epochs(TensorDataset(images, labels), registered=True, **options)


def test_images_alone_and_in_another_order(images: torch.Tensor) -> None:
    picked = torch.randperm(COUNT)[:333].tolist()
    assert_same_epochs(TensorDataset(images), registered=True, shuffle=True)
    assert_same_epochs(Subset(TensorDataset(images), picked), registered=True, shuffle=True)
    small = TensorDataset(torch.randn(COUNT, 7))
    mixed = StackDataset(TensorDataset(images), small)
    with vramkit.DataLoader(mixed, 50, device="cuda") as loader:
        for at, ((image,), (other,)) in enumerate(loader):
            rows = slice(50 * at, 50 * at + 50)
            assert torch.equal(image.cpu(), images[rows])
            assert torch.equal(other.cpu(), small.tensors[0][rows])
        assert loader.stats().registered_bytes >= images.nbytes


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_memory_map(images: torch.Tensor, tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "images.npy"
    np.save(path, images.numpy())
    mapped = np.load(path, mmap_mode=mode)

    class Mapped(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(mapped)

        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(np.array(mapped[index]))

        def __vramkit_arrays__(self) -> Any:
            return mapped

    with vramkit.DataLoader(Mapped(), 32, device="cuda") as loader:
        for _ in range(2):
            for at, batch in enumerate(loader):
                assert torch.equal(batch.cpu(), images[32 * at : 32 * at + 32])
        stats = loader.stats()
        print(mode, stats.registered_bytes, stats.not_registered)
        # Some systems let no driver hold pages of a file; the reason is told then.
        assert (stats.registered_bytes > 0) != bool(stats.not_registered)


def test_within_the_bound(images: torch.Tensor) -> None:
    assert_same_epochs(TensorDataset(images), registered=False, staging_bytes="64MiB")


def test_the_user_may_copy_the_same_memory(images: torch.Tensor) -> None:
    parts = TensorDataset(images[:200]), TensorDataset(images[200:])
    with (
        vramkit.DataLoader(parts[0], 32, device="cuda") as first,
        vramkit.DataLoader(parts[1], 32, device="cuda") as second,
    ):
        assert len(loaded(first)) + len(loaded(second)) == 7 + 13
        assert first.stats().registered_bytes == second.stats().registered_bytes > 0
        assert torch.equal(images.cuda().cpu(), images)
        assert torch.equal(images[190:210].cuda().cpu(), images[190:210])
        first.close()
        assert len(loaded(second)) == 13
    assert torch.equal(images.cuda().cpu(), images)


def test_batches_outlive_loader_and_data() -> None:
    images = random_images()
    expected = images[:64].clone()
    loader = vramkit.DataLoader(TensorDataset(images), 64, device="cuda")
    (kept,) = next(iter(loader))
    assert loader.stats().registered_bytes > 0
    del loader, images
    gc.collect()
    # Memory that was let go may be anything else now.
    other = torch.zeros(COUNT, *SHAPE, dtype=torch.uint8)
    assert torch.equal(kept.cpu(), expected)
    assert not other.any()


def test_a_fork_between_batches(images: torch.Tensor) -> None:
    with vramkit.DataLoader(TensorDataset(images), 32, device="cuda") as loader:
        iterator = iter(loader)
        got = [next(iterator)[0]]
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert "forked" in loader.stats().not_registered
        got += [batch for (batch,) in iterator]
        assert torch.equal(torch.cat(got).cpu(), images)
        assert torch.equal(torch.cat([batch for (batch,) in loader]).cpu(), images)
        assert loader.stats().registered_bytes > 0


def test_an_index_out_of_range_is_torchs_error(images: torch.Tensor) -> None:
    with (
        vramkit.DataLoader(
            TensorDataset(images), sampler=[0, 1, COUNT], batch_size=3, device="cuda"
        ) as loader,
        pytest.raises(IndexError, match=f"index {COUNT} is out of bounds"),
    ):
        list(loader)


def test_a_refusal_in_the_middle_falls_back_with_a_warning(images: torch.Tensor) -> None:
    with vramkit.DataLoader(TensorDataset(images), 32, device="cuda") as loader:
        iterator = iter(loader)
        got = [next(iterator)[0]]
        (held,) = loader._runtime._registered._held  # type: ignore[union-attr]
        module.host_unregister(held.begin)
        half = (held.end - held.begin) // 2 // mmap.PAGESIZE * mmap.PAGESIZE
        # A copy that begins in registered memory must end there.
        module.host_register(held.begin, half, 0)
        with pytest.warns(RuntimeWarning, match="go through host threads from now on"):
            got += [batch for (batch,) in iterator]
        assert torch.equal(torch.cat(got).cpu(), images)
