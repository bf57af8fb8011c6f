"""Data sets of the loader's benchmark."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset


class Images(Dataset[Any]):
    """Decoded images of 224 x 224 in a memory map, copied out one by one: not opted in."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._path = Path(tempfile.gettempdir()) / f"vramkit-bench-images-{count}.npy"
        if not self._path.exists():
            rows = np.random.default_rng(0).integers(0, 255, (64, 224, 224, 3), np.uint8)
            images = np.lib.format.open_memmap(self._path, "w+", np.uint8, (count, 224, 224, 3))
            for begin in range(0, count, 64):
                images[begin : begin + 64] = rows[: min(64, count - begin)]
        self._images: Any = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if self._images is None:
            self._images = np.load(self._path, mmap_mode="r")
        return torch.from_numpy(np.array(self._images[index])), index % 1000


class SmallTensors(Dataset[Any]):
    """Batches of many small tensors, made by the data set."""

    def __init__(self, tensors: int, batches: int) -> None:
        self.batch = {f"t{number}": torch.full((32, 5), float(number)) for number in range(tensors)}
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Any:
        return self.batch


class Tokens(Dataset[Any]):
    """Token ids, a mask and labels of 512 each."""

    def __init__(self, count: int) -> None:
        self.ids = torch.randint(50_000, (count, 512))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        ids = self.ids[index].clone()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def image_tensors(count: int) -> TensorDataset:
    """Images as one tensor in memory."""
    images = torch.randint(0, 255, (count, 3, 224, 224), dtype=torch.uint8)
    return TensorDataset(images, torch.arange(count))


def rows(count: int, row_bytes: int) -> TensorDataset:
    """Rows of floats as one tensor in memory."""
    return TensorDataset(torch.rand(count, row_bytes // 4), torch.arange(count))
