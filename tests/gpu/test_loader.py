"""``vramkit.DataLoader`` with ``device="cuda"``: the same batches, ordered by events alone."""

from __future__ import annotations

import gc
import threading
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, TensorDataset

import vramkit

pytestmark = pytest.mark.gpu


class Images(Dataset[Any]):
    """Samples of an array, a number and a text."""

    def __init__(self, count: int = 96) -> None:
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 255, (count, 3, 64, 64), np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return {"image": torch.from_numpy(self.images[index].copy()), "n": index, "s": str(index)}


class Boxed:
    """A batch of a type of its own."""

    def __init__(self, samples: list[Any]) -> None:
        self.images = torch.stack([sample["image"] for sample in samples])

    def to(self, device: Any) -> Boxed:
        self.images = self.images.to(device)
        return self


def assert_same(on_gpu: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert on_gpu.device.type == "cuda"
        assert on_gpu.dtype == expected.dtype
        assert torch.equal(on_gpu.cpu(), expected)
    elif isinstance(expected, dict):
        assert on_gpu.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(on_gpu[key], value)
    elif isinstance(expected, (list, tuple)):
        assert type(on_gpu) is type(expected)
        assert len(on_gpu) == len(expected)
        for ours, theirs in zip(on_gpu, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert on_gpu == expected


WAYS = [
    {"num_workers": 0},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
    {"num_workers": 2, "workers": "thread"},
]
TENSORS = TensorDataset(torch.randn(500, 33), torch.arange(500), torch.randn(500, 2).bfloat16())


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("dataset", [TENSORS, Images()], ids=["arrays", "images"])
def test_batches_are_torchs(dataset: Any, way: dict[str, Any]) -> None:
    plain = {key: value for key, value in way.items() if key != "workers"}
    torch.manual_seed(0)
    reference = TorchDataLoader(dataset, 16, shuffle=True, **plain)
    expected = [list(reference) for _ in range(2)]
    torch.manual_seed(0)
    with vramkit.DataLoader(dataset, 16, shuffle=True, device="cuda", **way) as loader:
        for epoch in expected:
            delivered = list(loader)
            assert len(delivered) == len(epoch)
            for ours, theirs in zip(delivered, epoch, strict=True):
                assert_same(ours, theirs)
        assert loader.stats().pinned_bytes > 0


@pytest.mark.parametrize("dataset", [TENSORS, Images(480)], ids=["arrays", "images"])
def test_a_slow_consumer_sees_no_later_batch(dataset: Any) -> None:
    # The GPU is many steps behind the host when it reads the batches.
    reference = list(TorchDataLoader(dataset, 8))
    loader = vramkit.DataLoader(dataset, 8, device="cuda", num_workers=2, prefetch_batches=3)
    side = torch.cuda.Stream()
    copies = []
    with torch.cuda.stream(side):
        for batch in loader:
            first = batch[0] if isinstance(batch, list) else batch["image"]
            torch.cuda._sleep(4_000_000)
            copies.append(first.clone())
            del batch, first
    torch.cuda.synchronize()
    for copy, batch in zip(copies, reference, strict=True):
        expected = batch[0] if isinstance(batch, list) else batch["image"]
        assert torch.equal(copy.cpu(), expected)
    loader.close()


def test_kept_batches_stay_as_they_are() -> None:
    reference = list(TorchDataLoader(Images(), 8))
    loader = vramkit.DataLoader(Images(), 8, device="cuda", num_workers=2)
    kept = list(loader)
    for _ in range(3):
        for _ in loader:
            pass
    loader.close()
    del loader
    gc.collect()
    for ours, theirs in zip(kept, reference, strict=True):
        assert_same(ours, theirs)


def test_a_transform_runs_on_the_gpu() -> None:
    def normalise(batch: Any) -> Any:
        assert batch["image"].device.type == "cuda"
        return batch | {"image": batch["image"].float().div_(255)}

    loader = vramkit.DataLoader(
        Images(), 8, device="cuda", num_workers=1, transform=normalise, prefetch_batches=2
    )
    for _ in range(3):
        copies = []
        for batch in loader:
            torch.cuda._sleep(1_000_000)
            copies.append(batch["image"].clone())
        for copy, batch in zip(copies, TorchDataLoader(Images(), 8), strict=True):
            assert torch.equal(copy, batch["image"].cuda().float().div_(255))
    loader.close()


def test_memory_does_not_grow() -> None:
    loader = vramkit.DataLoader(Images(), 8, device="cuda", num_workers=2, persistent_workers=True)
    weights = torch.randn(64, 64, device="cuda")
    reserved = []
    for _ in range(8):
        for batch in loader:
            for _ in range(4):
                (batch["image"].float() @ weights).sum()
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    staging = loader.stats().staging_bytes
    assert reserved[-1] == reserved[3]
    for _ in loader:
        pass
    assert loader.stats().staging_bytes == staging
    loader.close()


def test_the_device_gets_its_memory_back() -> None:
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    loader = vramkit.DataLoader(Images(), 8, device="cuda", num_workers=1)
    deque(loader, maxlen=0)
    last = next(iter(loader))
    loader.close()
    del loader
    gc.collect()
    assert torch.cuda.memory_allocated() > before
    del last
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_in_place_changes_of_one_tensor_leave_the_others() -> None:
    loader = vramkit.DataLoader(TENSORS, 16, device="cuda")
    inputs, numbers, _ = next(iter(loader))
    weight = torch.randn(33, 1, device="cuda", requires_grad=True)
    loss = (inputs @ weight).sum()
    numbers.add_(1)
    loss.backward()
    assert torch.equal(weight.grad[:, 0].cpu(), TENSORS.tensors[0][:16].sum(0)) or (
        (weight.grad[:, 0].cpu() - TENSORS.tensors[0][:16].sum(0)).abs().max() < 1e-4
    )


def test_a_type_of_the_users_is_moved_by_its_method() -> None:
    loader = vramkit.DataLoader(Images(), 8, collate_fn=Boxed, device="cuda", num_workers=1)
    for boxed, batch in zip(loader, TorchDataLoader(Images(), 8), strict=True):
        assert_same(boxed.images, batch["image"])
    loader.close()


def test_pin_memory_without_a_device() -> None:
    loader = vramkit.DataLoader(Images(), 8, pin_memory=True, num_workers=2)
    for ours, theirs in zip(loader, TorchDataLoader(Images(), 8), strict=True):
        assert ours["image"].is_pinned()
        assert torch.equal(ours["image"], theirs["image"])
    loader.close()


def test_two_threads_and_an_early_break() -> None:
    failures = []
    # filelock, which torch.compile uses, lets no two threads fork at the same time.
    forking = threading.Lock()

    def consume(loader: vramkit.DataLoader[Any]) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(3):
                    with forking:
                        batches = iter(loader)
                    for position, batch in enumerate(batches):
                        assert batch["n"].tolist()[0] == position * 8
                        if position == 5:
                            break
        except BaseException as err:  # noqa: BLE001 - told by the main thread
            failures.append(err)

    loaders = [vramkit.DataLoader(Images(), 8, device="cuda", num_workers=1) for _ in range(2)]
    threads = [threading.Thread(target=consume, args=(loader,)) for loader in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    for loader in loaders:
        loader.close()


def test_training_in_a_pool() -> None:
    with vramkit.MemoryPool("1GiB"):
        loader = vramkit.DataLoader(Images(), 8, device="cuda", num_workers=1)
        for ours, theirs in zip(loader, TorchDataLoader(Images(), 8), strict=True):
            assert_same(ours, theirs)
        loader.close()
        del loader, ours
        gc.collect()
        torch.cuda.synchronize()
