"""Datasets of the loader's benchmark.

Python datasets repeat what they store, so that a measured window holds no turn of an epoch.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

LENGTH = 1 << 20
TILE = 64


class Images(Dataset[Any]):
    """Decoded images of 224 x 224 in a memory map, copied out one by one: not opted in."""

    def __init__(self, stored: int, length: int = LENGTH) -> None:
        self.stored, self.length = stored, length
        self._path = Path(tempfile.gettempdir()) / f"vramkit-bench-images-{stored}.npy"
        if not self._path.exists():
            rows = np.random.default_rng(0).integers(0, 255, (TILE, 224, 224, 3), np.uint8)
            images = np.lib.format.open_memmap(self._path, "w+", np.uint8, (stored, 224, 224, 3))
            for begin in range(0, stored, TILE):
                images[begin : begin + TILE] = rows[: min(TILE, stored - begin)]
        self._images: Any = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if self._images is None:
            self._images = np.load(self._path, mmap_mode="r")
        return torch.from_numpy(np.array(self._images[index % self.stored])), index % 1000


class SmallTensors(Dataset[Any]):
    """Batches of many small tensors, made by the dataset."""

    def __init__(self, tensors: int) -> None:
        self.batch = {f"t{number}": torch.full((32, 5), float(number)) for number in range(tensors)}

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        return self.batch


class Tokens(Dataset[Any]):
    """Token ids, a mask and labels of 512 each."""

    def __init__(self, stored: int) -> None:
        self.ids = torch.randint(50_000, (stored, 512))

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        ids = self.ids[index % len(self.ids)].clone()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def image_tensors(count: int) -> TensorDataset:
    """Images as one tensor in memory."""
    tile = torch.randint(0, 255, (TILE, 3, 224, 224), dtype=torch.uint8)
    return TensorDataset(_repeat(tile, count), torch.arange(count))


def rows(count: int, row_bytes: int) -> TensorDataset:
    """Rows of floats as one tensor in memory."""
    tile = torch.rand(TILE, row_bytes // 4)
    return TensorDataset(_repeat(tile, count), torch.arange(count))


def _repeat(tile: torch.Tensor, count: int) -> torch.Tensor:
    # Random numbers for gigabytes would take longer than a measurement.
    repeated = torch.empty((count // TILE, *tile.shape), dtype=tile.dtype)
    return repeated.copy_(tile).flatten(0, 1)
