"""Hugging Face datasets whose columns are arrays in memory, and where their rows lie.

Arrow keeps a column as bytes that often are the very ones that the dataset's format delivers. Then
the rows are gathered from there. ``datasets`` is not imported: who has a dataset has done that.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from vramkit.loader._columns import Column, NotArraysError, Segment, as_tensor
from vramkit.loader._packing import is_plain

_FORMATS = ("torch", "numpy")
# Arrow's names of the types whose elements are those of a tensor.
_NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "halffloat", "float", "double")


def is_hugging_face(kind: type) -> bool:
    """Whether this is the class ``datasets.Dataset``; subclasses may make other samples."""
    module = sys.modules.get("datasets.arrow_dataset")
    return module is not None and kind is vars(module).get("Dataset")


def find_columns(dataset: Any) -> dict[str, Column]:
    """Return the columns that the dataset's format delivers.

    Raises:
        NotArraysError: Some column is not in memory as it is delivered.
    """
    names = _delivered(dataset)
    order = _order_of(dataset._indices)
    columns = {name: _column(dataset.data.column(name), name, order) for name in names}
    for sample in (dataset[0], *dataset.__getitems__([0])):
        _compare(default_collate([sample]), columns)
    return columns


def _delivered(dataset: Any) -> list[str]:
    """The names of the columns that samples have, in their order."""
    chosen = dataset.format
    if chosen["type"] not in _FORMATS:
        raise NotArraysError(
            f"a Hugging Face dataset in the format {chosen['type']!r} makes its samples by "
            "Python code; with_format('torch') or with_format('numpy') delivers arrays"
        )
    names = [name for name in dataset.column_names if name in chosen["columns"]]
    if chosen["output_all_columns"] and len(names) < len(dataset.column_names):
        raise NotArraysError("output_all_columns=True delivers columns as Python objects")
    if not names or not len(dataset):
        raise NotArraysError("the Hugging Face dataset is empty")
    is_decoded = sys.modules["datasets.features.features"].require_decoding
    for name in names:
        if is_decoded(dataset.features[name]):
            kind = type(dataset.features[name]).__qualname__
            raise NotArraysError(f"samples of column {name!r} are decoded ({kind})")
    return names


def _order_of(indices: Any) -> torch.Tensor | None:
    """The rows that ``select``, ``shuffle`` and the like have left, None for all of them."""
    if indices is None:
        return None
    # uint64 in memory; what exceeds int64 becomes negative, and negative rows are not gathered.
    return as_tensor(indices.column(0).to_numpy().astype(np.uint64, copy=False).view(np.int64))


def _column(chunked: Any, name: str, order: torch.Tensor | None) -> Column:
    parts = [(chunk, _rows(chunk, name)) for chunk in chunked.chunks if len(chunk)]
    if len({rows.shape[1:] for _, rows in parts}) > 1:
        raise _unequal(name)
    # Arrow's memory may be a part of something larger, so it belongs to no numpy array.
    segments = tuple(
        Segment(rows.__array_interface__["data"][0], len(rows), rows.strides[0], chunk)
        for chunk, rows in parts
    )
    first = as_tensor(parts[0][1])
    whole = first if len(parts) == 1 else None
    return Column(segments, first.dtype, tuple(first.shape[1:]), order, whole)


def _rows(chunk: Any, name: str) -> np.ndarray[Any, Any]:
    """The rows of a part of a column, not copied."""
    values, declared = _storage(chunk)
    shape = []
    while _is_list(values) and not values.null_count:
        shape.append(_length_of_lists(values, name))
        values = values.flatten()
    if values.null_count:
        raise NotArraysError(f"column {name!r} has nulls")
    if str(values.type) not in _NUMBERS:
        raise NotArraysError(
            f"column {name!r} has Arrow's type {chunk.type}; only integers, floating-point "
            "numbers and lists of them, all of the same length, are gathered"
        )
    if declared is not None and any(
        size not in (None, stored) for size, stored in zip(declared, shape, strict=True)
    ):
        raise NotArraysError(
            f"column {name!r} has shape {declared}, but is stored as {tuple(shape)}"
        )
    return values.to_numpy(zero_copy_only=True).reshape(len(chunk), *shape)  # type: ignore[no-any-return]


def _storage(chunk: Any) -> tuple[Any, tuple[int | None, ...] | None]:
    """What holds the values, and the shape of a row where the type has one (``Array2D``...)."""
    if type(chunk.type).__module__ != "datasets.features.features":
        return chunk, None
    return chunk.storage, chunk.type.shape


def _is_list(values: Any) -> bool:
    arrow = sys.modules["pyarrow"]
    return type(values) in (arrow.ListArray, arrow.LargeListArray, arrow.FixedSizeListArray)


def _length_of_lists(lists: Any, name: str) -> int:
    size = getattr(lists.type, "list_size", None)
    if size is None:
        lengths = np.diff(lists.offsets.to_numpy())
        size = int(lengths[0])
        if (lengths != size).any():
            raise _unequal(name)
    if size == 0:
        raise NotArraysError(f"the lists of column {name!r} have no elements")
    return int(size)


def _unequal(name: str) -> NotArraysError:
    return NotArraysError(f"the lists of column {name!r} have different lengths")


def _compare(batch: Any, columns: dict[str, Column]) -> None:
    """Refuse columns that the dataset converts on the way from memory into a batch."""
    for name, column in columns.items():
        made = batch[name]
        if not is_plain(made):
            raise NotArraysError(
                f"column {name!r} is not delivered as a plain tensor in host memory"
            )
        stored, delivered = (column.dtype, column.shape), (made.dtype, tuple(made.shape[1:]))
        if stored != delivered:
            raise NotArraysError(
                f"rows of column {name!r} are stored as {stored} and delivered as {delivered}; "
                "with_format(..., dtype=None) delivers every column as it is stored"
            )
