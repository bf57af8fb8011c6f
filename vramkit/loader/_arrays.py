"""Datasets that are arrays in memory: which these are, and where their rows lie.

PyTorch's ``TensorDataset``, ``Subset``, ``StackDataset`` and ``ConcatDataset`` of such are known,
and so are Hugging Face datasets. A dataset of another class takes part if it has the method
``__vramkit_arrays__``; nothing is guessed about one that has not.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from vramkit.loader._columns import Column, NotArraysError, Segment, as_tensor
from vramkit.loader._hugging_face import find_columns, is_hugging_face
from vramkit.loader._packing import is_plain

METHOD = "__vramkit_arrays__"


def find_arrays(dataset: Any) -> Any:
    """Return the structure of a sample, with a :class:`Column` for each array.

    Raises:
        NotArraysError: The dataset is not known to be arrays.
    """
    kind = type(dataset)
    if kind is TensorDataset:
        return tuple(_tensor_column(each) for each in dataset.tensors)
    if kind is Subset:
        return _reorder(find_arrays(dataset.dataset), _order_of(dataset.indices))
    if kind is StackDataset:
        return _stacked(dataset.datasets)
    if kind is ConcatDataset:
        return _concatenate([find_arrays(each) for each in dataset.datasets])
    if is_hugging_face(kind):
        return find_columns(dataset)
    if kind is torch.Tensor:
        return _tensor_column(dataset)
    if kind is list:
        raise NotArraysError(
            "a list holds samples, not arrays; a TensorDataset of the samples stacked by "
            "torch.stack() is gathered"
        )
    _check_speaks_for_its_samples(kind)
    return _declared(dataset)


def _check_speaks_for_its_samples(kind: type) -> None:
    """Check that the class has the method, and that no subclass of it makes other samples.

    Raises:
        NotArraysError: It has not, or one does.
    """
    order = [vars(each) for each in kind.__mro__]
    declared = next((at for at, names in enumerate(order) if METHOD in names), None)
    if declared is None or order[declared][METHOD] is None:
        raise NotArraysError(
            f"{kind.__qualname__} is not known to be arrays; a method {METHOD}() that returns them "
            "makes it so"
        )
    makers = ("__getitem__", "__getitems__", "__len__")
    for at, names in enumerate(order[:declared]):
        other = next((name for name in makers if name in names), None)
        if other is not None:
            raise NotArraysError(
                f"{kind.__mro__[at].__qualname__} has another {other}() than "
                f"{kind.__mro__[declared].__qualname__}, whose {METHOD}() does not speak for it; "
                f"define {METHOD}() there, too"
            )


def _stacked(datasets: Any) -> Any:
    if isinstance(datasets, dict):
        return {key: find_arrays(each) for key, each in datasets.items()}
    return tuple(find_arrays(each) for each in datasets)


def _declared(dataset: Any) -> Any:
    name = type(dataset).__qualname__
    method = getattr(dataset, METHOD)
    if not callable(method):
        raise NotArraysError(
            f"{METHOD} of {name} must be a method, got {type(method).__qualname__}"
        )
    structure = _declared_part(method(), name)
    rows = {where: column.rows for where, column in _named("", structure)}
    if set(rows.values()) != {len(dataset)}:
        each = ", ".join(f"{where or 'the array'}: {count:,}" for where, count in rows.items())
        raise NotArraysError(
            f"{name} has {len(dataset):,} samples, but the arrays of {METHOD}() have other numbers "
            f"of rows ({each or 'there are none'})"
        )
    return structure


def _named(where: str, structure: Any) -> list[tuple[str, Column]]:
    """The columns of a structure with where they stand in it."""
    if isinstance(structure, Column):
        return [(where, structure)]
    parts = structure.items() if isinstance(structure, dict) else enumerate(structure)
    return [named for key, part in parts for named in _named(f"{where}[{key!r}]", part)]


def _declared_part(part: Any, name: str) -> Any:
    if isinstance(part, torch.Tensor):
        return _tensor_column(part)
    if type(part) in (np.ndarray, np.memmap):
        return _array_column(part)
    if type(part) is dict:
        return {key: _declared_part(each, name) for key, each in part.items()}
    if type(part) in (tuple, list):
        return type(part)(_declared_part(each, name) for each in part)
    raise NotArraysError(
        f"{METHOD}() of {name} must return tensors, numpy arrays, or tuples, lists or dicts of "
        f"them, got {type(part).__qualname__}"
    )


def _tensor_column(tensor: torch.Tensor) -> Column:
    if not is_plain(tensor):
        raise NotArraysError(
            "a tensor of the dataset is not a plain one in host memory "
            f"({type(tensor).__qualname__} on {tensor.device}, requires_grad="
            f"{tensor.requires_grad})"
        )
    if tensor.dim() and len(tensor) and not tensor[0:1].numel():
        raise NotArraysError("the rows of a tensor have no elements, so indices go unchecked")
    if tensor.dim() == 0 or (len(tensor) and not tensor[0].is_contiguous()):
        raise NotArraysError(
            f"the rows of a tensor of shape {tuple(tensor.shape)} with strides "
            f"{tensor.stride()} are not contiguous"
        )
    stride = tensor.stride(0) * tensor.element_size()
    segment = Segment(tensor.data_ptr(), len(tensor), stride, tensor)
    return Column((segment,), tensor.dtype, tuple(tensor.shape[1:]), tensor=tensor)


def _array_column(array: np.ndarray[Any, Any]) -> Column:
    if array.ndim == 0 or array.dtype.byteorder not in "=|" or array.dtype.hasobject:
        raise NotArraysError(
            f"an array of dtype {array.dtype} and shape {array.shape} has no rows that a tensor "
            "can hold"
        )
    try:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    except TypeError as err:
        raise NotArraysError(f"a tensor has no dtype for {array.dtype}") from err
    if len(array) and not array[0:1].size:
        raise NotArraysError("the rows of an array have no elements, so indices go unchecked")
    if array.strides[0] < 0:
        raise NotArraysError(
            f"the rows of an array of shape {array.shape} run backwards in memory; "
            "numpy.ascontiguousarray() makes a copy that is gathered"
        )
    if len(array) and not array[0:1].flags.c_contiguous:
        raise NotArraysError(
            f"the rows of an array of shape {array.shape} with strides {array.strides} are not "
            "contiguous"
        )
    address = array.__array_interface__["data"][0]
    segment = Segment(address, len(array), array.strides[0], array)
    return Column((segment,), dtype, tuple(array.shape[1:]), tensor=as_tensor(array))


def _order_of(indices: Any) -> torch.Tensor:
    try:
        order = torch.as_tensor(np.asarray(indices), device="cpu")
    except (TypeError, ValueError) as err:
        raise NotArraysError(f"the indices of a Subset are no integers: {err}") from err
    if order.dim() != 1 or order.dtype not in (torch.int64, torch.int32) or not len(order):
        raise NotArraysError(f"the indices of a Subset have dtype {order.dtype}")
    return order.to(torch.int64)


def _reorder(structure: Any, order: torch.Tensor) -> Any:
    """The structure with its samples taken in another order."""
    if isinstance(structure, dict):
        return {key: _reorder(each, order) for key, each in structure.items()}
    if isinstance(structure, (tuple, list)):
        return type(structure)(_reorder(each, order) for each in structure)
    low, high = int(order.min()), int(order.max())
    if low < 0 or high >= structure.rows:
        raise NotArraysError(
            f"the indices of a Subset reach from {low} to {high}, outside of 0 to "
            f"{structure.rows - 1}"
        )
    own = order if structure.order is None else structure.order[order]
    return dataclasses.replace(structure, order=own)


def _concatenate(parts: list[Any]) -> Any:
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        raise NotArraysError("the parts of a ConcatDataset have samples of different kinds")
    if isinstance(first, dict):
        if any(list(part) != list(first) for part in parts):
            raise NotArraysError(
                "the parts of a ConcatDataset differ in their keys or the keys' order"
            )
        return {key: _concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        if any(len(part) != len(first) for part in parts):
            raise NotArraysError("the parts of a ConcatDataset have samples of different length")
        return type(first)(
            _concatenate([part[position] for part in parts]) for position in range(len(first))
        )
    return _concatenate_columns(parts)


def _concatenate_columns(columns: list[Column]) -> Column:
    first = columns[0]
    if any((each.dtype, each.shape) != (first.dtype, first.shape) for each in columns):
        kinds = sorted({f"{each.dtype} {each.shape}" for each in columns})
        raise NotArraysError(f"the parts of a ConcatDataset differ: {', '.join(kinds)}")
    segments = tuple(segment for each in columns for segment in each.segments)
    if len({segment.row_stride_bytes for segment in segments}) > 1:
        raise NotArraysError("the parts of a ConcatDataset have rows at different strides")
    if all(each.order is None for each in columns):
        return Column(segments, first.dtype, first.shape)
    orders, before = [], 0
    for each in columns:
        own = torch.arange(each.stored_rows, device="cpu") if each.order is None else each.order
        orders.append(own + before)
        before += each.stored_rows
    return Column(segments, first.dtype, first.shape, torch.cat(orders))
