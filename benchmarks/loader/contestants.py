"""The loaders that are measured beside each other, each made for the host or for the GPU."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

# Takes a dataset and the arguments of a loader; returns the loader and its endless batches.
Maker = Callable[..., tuple[Any, Generator[Any, None, None]]]


def to_device(batch: Any, device: str) -> Any:
    """Move a batch as training loops do."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return [to_device(value, device) for value in batch]


def epochs_of(loader: Any) -> Generator[Any, None, None]:
    """One epoch after another."""
    while True:
        yield from loader


def moved(batches: Iterator[Any]) -> Generator[Any, None, None]:
    """Each batch, moved by the loop that asks for it."""
    for batch in batches:
        yield to_device(batch, "cuda")


def torch_loader(
    dataset: Any, options: dict[str, Any], *, on_gpu: bool
) -> tuple[Any, Generator[Any, None, None]]:
    """PyTorch's loader; onto the GPU as its documentation says."""
    loader: Any = DataLoader(dataset, pin_memory=on_gpu, **options)
    batches = epochs_of(loader)
    return loader, moved(batches) if on_gpu else batches


def own_loader(
    dataset: Any, options: dict[str, Any], *, on_gpu: bool
) -> tuple[Any, Generator[Any, None, None]]:
    """vramkit's loader."""
    import vramkit

    loader: Any = vramkit.DataLoader(dataset, device="cuda" if on_gpu else None, **options)
    return loader, epochs_of(loader)
