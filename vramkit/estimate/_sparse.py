"""Sparse gradients of embeddings: tensors of indices and values, and what CUDA allocates for them.

Written from PyTorch's sources: ``ATen/native/sparse/SparseTensor.cpp``, ``SparseTensorMath.cpp``,
``ATen/native/sparse/cuda/SparseCUDATensor.cu`` and ``SparseCUDATensorMath.cu``, ``ATen/native/
EmbeddingBag.cpp``, and ``torch/csrc/autograd/functions/accumulate_grad.h``. The storages of a
sparse fake are those of its indices and values; what fakes would do with it otherwise loses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vramkit.errors import UntraceableError
from vramkit.estimate import _engine
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._ops._cub import merge_sort_bytes, unique_bytes
from vramkit.estimate._ops._plan import Drop, Give, Step, Take, scratch, size_of
from vramkit.estimate._ops._scan import nonzero
from vramkit.estimate._shadow import Shadows
from vramkit.estimate._target import Target

_aten = torch.ops.aten
_LAYOUT = torch.sparse_coo
_INDEX_BYTES = 8
_MEAN = 1
# On a sparse fake: its different indices, where their values are known.
_DISTINCT = "_vramkit_distinct"


class Recorder(Protocol):
    """Records what operators allocate.

    Attributes:
        shadows: Values that are known without data.
        target: The GPU.
    """

    shadows: Shadows
    target: Target

    def follow(self, plan: Sequence[Any], outputs: tuple[Any, ...]) -> None:
        """Record what a plan says."""

    def assume(self, sentence: str) -> None:
        """Count an assumption."""


class Tracer(Recorder, AbstractContextManager[Any], Protocol):
    """A scope in which operators are traced, too."""


Handler = Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any]], Any]


def concerns(name: str, args: Sequence[Any], tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether an operator takes or makes a sparse tensor; asked for each operator."""
    if name == "aten::_embedding_bag_backward":
        return bool(args[9])
    return name in _MAKERS or _LAYOUT in [tensor.layout for tensor in tensors]


def is_sparse(tensor: Any) -> bool:
    """Tell whether this is a tensor of indices and values."""
    return isinstance(tensor, torch.Tensor) and tensor.layout is _LAYOUT


def run(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator that takes or makes a sparse tensor.

    Raises:
        UntraceableError: Nothing is known of it.
    """
    handler = _HANDLERS.get(func.name())
    found = handler(tracer, func, args, kwargs) if handler else NotImplemented
    if found is NotImplemented:
        raise UntraceableError(
            f"{func.name()} at {line_of_caller()} takes a sparse tensor, which is not followed, so "
            "its memory cannot be known; sparse gradients of embeddings work with SparseAdam, "
            "Adagrad and SGD without momentum"
        )
    return found


def _as_it_is(_: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _make(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tensors are taken as they are, without a copy."""
    made = func(*args, **kwargs)
    value = tracer.shadows.of(args[3])
    if value is not None and args[3].shape[0] == 1:
        with _disable_current_modes():
            setattr(made, _DISTINCT, value.unique())
    return made


def _clone(tracer: Tracer, _: Any, args: tuple[Any, ...], __: dict[str, Any]) -> Any:
    """A gradient that the engine holds alone is not copied, as fakes are, if it is contiguous."""
    indices, values = args[0]._indices(), args[0]._values()
    dense = indices.is_contiguous() and values.is_contiguous()
    if not (dense and _engine.from_engine() and _engine.node_is("torch::autograd::AccumulateGrad")):
        with tracer:  # the compilers of PyTorch's builds evaluate the last argument first
            values = values.clone(memory_format=torch.contiguous_format)
            indices = indices.clone(memory_format=torch.contiguous_format)
    return _like(args[0], indices, values, coalesced=args[0].is_coalesced())


def _coalesce(tracer: Tracer, _: Any, args: tuple[Any, ...], __: dict[str, Any]) -> Any:
    """Sorts copied indices, finds those that differ, and adds up their values."""
    gradient = args[0]
    indices, values = gradient._indices(), gradient._values()
    count, rows = int(indices.shape[1]), int(gradient.shape[0])
    if indices.shape[0] != 1:
        return NotImplemented
    if count < 2:
        return _clone(tracer, None, args, {})
    known = getattr(gradient, _DISTINCT, None)
    distinct = min(count, rows) if known is None else int(known.numel())
    if known is None:
        tracer.assume(
            f"The gradient of an embedding that {line_of_caller()} adds up has {distinct:,} "
            f"different rows, the most of {count:,} that were looked up; fewer need less."
        )
    of_indices = _INDEX_BYTES * count
    # The storage of the sorted indices keeps its size.
    flat = indices.new_empty(count)
    summed = values.new_empty((distinct, *values.shape[1:]))
    copied = [] if values.is_contiguous() else [Take(size_of(values))]
    plan: list[Step] = [Give(0), Take(of_indices), Take(of_indices)]
    plan += [*scratch(merge_sort_bytes(count)), *scratch(unique_bytes(count)), Give(1), *copied]
    tracer.follow([*plan, Drop(2, below=len(copied)), Drop(len(copied))], (flat, summed))
    return _like(gradient, flat[:distinct].unsqueeze(0), summed, coalesced=True)


def _mask(tracer: Tracer, _: Any, args: tuple[Any, ...], __: dict[str, Any]) -> Any:
    """Rows of a dense tensor, times ones of the mask's size."""
    dense, mask = args[:2]
    if is_sparse(dense) or mask._indices().shape[0] != 1:
        return NotImplemented
    indices, values = mask._indices(), mask._values()
    with tracer:
        one = torch.ones(1, dtype=values.dtype, device=values.device)
        rows = _aten.index.Tensor(dense, [indices[0]])
        copied = indices.clone(memory_format=torch.contiguous_format)
        chosen = rows * one.expand_as(values)
        del rows, one
    return _like(mask, copied, chosen, coalesced=mask.is_coalesced())


def _add_in_place(tracer: Tracer, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Of a sparse tensor to a dense one: no block; of two sparse ones: both are joined."""
    first, second = args[:2]
    if not is_sparse(first):
        return first if first.dtype == second.dtype else NotImplemented
    joined = _joined(args, kwargs)
    if joined is not NotImplemented:
        before = first._indices(), first._values()
        _aten.copy_sparse_to_sparse_(first, joined)
        setattr(first, _DISTINCT, getattr(joined, _DISTINCT, None))
        tracer.follow([Give(0), Give(1)], (first._indices(), first._values()))
        del before
        return first
    return joined


def _add(tracer: Tracer, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gradients of two uses of a table are joined."""
    joined = _joined(args, kwargs)
    if joined is not NotImplemented:
        tracer.follow([Give(0), Give(1)], (joined._indices(), joined._values()))
    return joined


def _joined(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Both one after the other, unless PyTorch would add them up, as they have too many rows."""
    first, second = args[:2]
    if kwargs or not (is_sparse(first) and is_sparse(second)) or first.dtype != second.dtype:
        return NotImplemented
    indices = torch.cat([first._indices(), second._indices()], 1)
    if indices.shape[1] > first.numel():
        return NotImplemented
    values = torch.cat([first._values(), second._values()], 0)
    joined = _like(first, indices, values, coalesced=False)
    known: list[Any] = [getattr(each, _DISTINCT, None) for each in (first, second)]
    if all(isinstance(each, torch.Tensor) for each in known):
        with _disable_current_modes():
            setattr(joined, _DISTINCT, torch.cat(known).unique())
    return joined


def _bag_backward(tracer: Tracer, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The gradient of each bag for each of its indices, divided for means."""
    gradient, indices, _, bags, sizes = args[:5]
    count, mode, weights = int(args[6]), args[8], args[10]
    padding = args[11] if len(args) > 11 else kwargs.get("padding_idx", -1)
    with tracer:
        rows = gradient.index_select(0, bags)
        if mode == _MEAN:
            converted = sizes.to(rows.dtype)
            inverse = converted.reciprocal()
            chosen = inverse.unsqueeze(1).index_select(0, bags)
            del inverse, converted
            rows.mul_(chosen)
            del chosen
        if weights is not None:
            rows.mul_(weights.unsqueeze(1))
        return _aten.embedding_backward(rows, indices, count, padding, False, True)


def without_padding(recorder: Recorder, args: tuple[Any, ...]) -> Any:
    """Rows that a boolean mask chooses of a sparse gradient: all, unless the indices are known."""
    tensor, [mask] = args
    known, values = recorder.shadows.of(mask), recorder.shadows.of(tensor)
    count = mask.numel()
    if known is not None:
        with _disable_current_modes():
            count = int(known.sum())
    else:
        recorder.assume(
            f"No index that {line_of_caller()} looks up in an embedding is that of the padding; "
            "if some are, its sparse gradient needs less."
        )
    chosen = tensor.new_empty((count, *tensor.shape[mask.dim() :]))
    if known is not None and values is not None:
        with _disable_current_modes():
            recorder.shadows.set(chosen, values[known])
    places = Take(_INDEX_BYTES * count * mask.dim())
    found = nonzero(mask.numel(), recorder.target, places)
    recorder.follow([*found, Give(0), Drop()], (chosen,))
    return chosen


def chooses_padding(args: Any) -> bool:
    """Tell whether an index operator drops what belongs to an embedding's padding."""
    masks = [each for each in args[1] if each is not None]
    if len(masks) != 1 or masks[0].dtype != torch.bool or not _engine.from_engine():
        return False
    return _engine.node_is("Embedding")


def _like(gradient: Any, indices: Any, values: Any, *, coalesced: bool) -> Any:
    options = {"dtype": values.dtype, "device": values.device, "layout": _LAYOUT}
    dims = indices.shape[0], values.dim() - 1, gradient.shape
    made = _aten._sparse_coo_tensor_with_dims_and_tensors(
        *dims, indices, values, **options, is_coalesced=coalesced
    )
    if indices.shape == gradient._indices().shape:
        setattr(made, _DISTINCT, getattr(gradient, _DISTINCT, None))
    return made


_MAKERS: dict[str, Handler] = {"aten::_sparse_coo_tensor_with_dims_and_tensors": _make}
_HANDLERS: dict[str, Handler] = {
    **_MAKERS,
    **dict.fromkeys(
        (
            *("aten::_indices", "aten::_values", "aten::_nnz", "aten::is_coalesced"),
            *("aten::_coalesced_", "aten::sparse_dim", "aten::dense_dim"),
        ),
        _as_it_is,
    ),
    "aten::clone": _clone,
    "aten::_coalesce": _coalesce,
    "aten::sparse_mask": _mask,
    "aten::add_.Tensor": _add_in_place,
    "aten::add.Tensor": _add,
    "aten::_embedding_bag_backward": _bag_backward,
}
