"""What the arrays of a dataset are to the loader: columns of rows in memory."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


class NotArraysError(Exception):
    """The dataset cannot be gathered; the text says why."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of a column in one piece of memory."""

    address: int
    rows: int
    row_stride_bytes: int
    # Keeps the memory alive.
    owner: object


@dataclass(frozen=True, slots=True)
class Column:
    """One array of the samples: row i belongs to sample i.

    Attributes:
        segments: Where the rows lie, in order.
        dtype: Type of the elements.
        shape: Shape of one row.
        order: The row of each sample where it is not the sample's own number, else None.
    """

    segments: tuple[Segment, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    order: torch.Tensor | None = None
    # The whole column as a tensor, where it is one.
    tensor: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return len(self.order) if self.order is not None else self.stored_rows

    @property
    def stored_rows(self) -> int:
        """How many rows the segments have."""
        return sum(segment.rows for segment in self.segments)

    @property
    def row_bytes(self) -> int:
        """The size of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


def columns_of(structure: Any) -> list[Column]:
    """Return the columns of a structure, from left to right."""
    if isinstance(structure, Column):
        return [structure]
    parts = structure.values() if isinstance(structure, dict) else structure
    return [column for part in parts for column in columns_of(part)]


def as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a tensor of the array's own memory, which nobody writes to."""
    with warnings.catch_warnings():
        # A memory map is often read-only.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
