"""Datasets of every kind, which can be pickled."""

import random
import time
from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info


class Point(NamedTuple):
    """A named tuple."""

    x: Any
    y: Any


class Pixels(Dataset):
    """Large enough to be streamed: 4 KiB a sample, with a label."""

    def __init__(self, length: int = 11, elements: int = 1024) -> None:
        self.length, self.elements = length, elements

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < self.length:
            raise IndexError(f"no sample {index}")
        return torch.full((self.elements,), float(index)), index


class Draws(Dataset):
    """Random samples: they show the seeds of the workers."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "torch": torch.rand(600),
            "numpy": np.random.rand(3),
            "random": random.random(),
            "seed": torch.initial_seed() if get_worker_info() is None else get_worker_info().seed,
        }


class Batched(Dataset):
    """Fetches batches with __getitems__."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("__getitems__ is there")

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(torch.full((700,), each), str(each)) for each in indices]


class Stream(IterableDataset):
    """A stream that is divided among the workers."""

    def __init__(self, length: int = 10, elements: int = 1024) -> None:
        self.length, self.elements = length, elements

    def __iter__(self) -> Any:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, self.length, step):
            yield torch.full((self.elements,), number), number


class LyingStream(Stream):
    """Has more samples than it says."""

    def __len__(self) -> int:
        return 3


class Listed(Dataset):
    """The samples of a list."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]


class Keyed(Dataset):
    """Found by any key."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: Any) -> Any:
        return repr(key), torch.arange(800)


@dataclass
class Sample:
    """A dataclass as a batch."""

    image: torch.Tensor
    label: torch.Tensor
    name: str = "sample"
    extra: dict[str, Any] = field(default_factory=dict)


class Custom:
    """A type of the user's own, with pin_memory()."""

    def __init__(self, data: list[Any]) -> None:
        self.image = torch.stack([each[0] for each in data])
        self.label = torch.tensor([each[1] for each in data])

    def pin_memory(self) -> "Custom":
        return self


class Tagged(torch.Tensor):
    """A subclass of tensors."""


def keep_list(samples: list[Any]) -> list[Any]:
    return samples


def to_custom(samples: list[Any]) -> Custom:
    return Custom(samples)


def to_sample(samples: list[Any]) -> Sample:
    images = torch.stack([each[0] for each in samples])
    labels = torch.tensor([each[1] for each in samples])
    return Sample(images, labels, "made", {"also": images[:1]})


def to_point(samples: list[Any]) -> Any:
    return Point(torch.stack([each[0] for each in samples]), [each[1] for each in samples])


def to_mixture(samples: list[Any]) -> Any:
    """Everything that travels, in one batch."""
    images = torch.stack([each[0] for each in samples])
    return OrderedDict(
        images=images,
        point=Point(images[0], (1, "two", b"three", None, 4.5, 6j)),
        array=np.arange(2000.0).reshape(20, 100),
        user=UserDict(a=torch.ones(3)),
        sample=Sample(images[:1], torch.tensor(1)),
        sparse=torch.eye(3).to_sparse(),
        tagged=torch.ones(4).as_subclass(Tagged),
        half=images.to(torch.bfloat16),
        flags=torch.tensor([True, False]),
        empty=torch.empty(0, 3),
        scalar=torch.tensor(3.5),
        nested=[[[(torch.zeros(2),)]], {1: {2: torch.ones(1)}}],
        transposed=images.t(),
        every_second=images[:, ::2],
        conjugate=torch.tensor([1 + 2j]).conj(),
        gradient=torch.ones(2, requires_grad=True),
    )


class Alternating(Dataset):
    """Batches that fail now and then."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index in (2, 5):
            raise ValueError(f"bad sample {index}")
        return torch.full((1000,), index)


class Uneven(Dataset):
    """Every fourth sample takes long."""

    def __init__(self, count: int, seconds: float = 0.1) -> None:
        self.count, self.seconds = count, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds * (index % 4 == 0))
        return index
