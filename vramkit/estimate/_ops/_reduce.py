"""Reductions: the staging buffer of one that is split over blocks of threads.

``ATen/native/cuda/Reduce.cuh`` (in every wheel) decides how a reduction is laid out; the functions
below follow ``setReduceConfig`` step by step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Take, scratch, size_of
from vramkit.estimate._target import Target

_MAX_THREADS = 512
_WARP = 32
_LEAST_SPLIT = 16
_MOST_SPLIT = 256


@dataclass(frozen=True)
class Kernel:
    """How a reduction's kernel counts.

    Attributes:
        accumulator_bytes: Bytes of one partial result.
        input_vector: Elements that a thread reads at once along a reduced contiguous dimension.
        output_vector: Most results that a thread computes at once.
        threads: Most threads of a block.
    """

    accumulator_bytes: int = 4
    input_vector: int = 4
    output_vector: int = 4
    threads: int = _MAX_THREADS


@dataclass(frozen=True)
class _Dim:
    size: int
    stride: int
    reduced: bool
    output_stride: int


def staging(
    tensor: torch.Tensor, reduced: set[int], target: Target, kernel: Kernel | None = None
) -> tuple[int, ...]:
    """Return the bytes of the staging buffer and of its semaphores; nothing where neither is."""
    offset = int(tensor.storage_offset())
    return staging_of(tensor.shape, tensor.stride(), reduced, target, kernel, offset=offset)


def staging_of(
    shape: Sequence[int],
    strides: Sequence[int],
    reduced: set[int],
    target: Target,
    kernel: Kernel | None = None,
    *,
    offset: int = 0,
) -> tuple[int, ...]:
    """Return the same for a tensor that is not there."""
    dims = _iterated(shape, strides, reduced)
    count = sum(dim.reduced for dim in dims)
    total = math.prod(shape)
    if total == 0 or count == 0:
        return ()
    outputs = math.prod(s for i, s in enumerate(shape) if i not in reduced)
    return _config(dims, count, outputs, total, offset, target, kernel or Kernel())


def reduced_dims(tensor: torch.Tensor, dim: Any) -> set[int]:
    """Return the dimensions that an argument ``dim`` names."""
    if dim is None or dim == []:
        return set(range(tensor.dim()))
    named = [dim] if isinstance(dim, int) else dim
    return {each % tensor.dim() for each in named} if tensor.dim() else set()


def _config(
    dims: Sequence[_Dim],
    count: int,
    outputs: int,
    total: int,
    offset: int,
    target: Target,
    kernel: Kernel,
) -> tuple[int, ...]:
    inputs = total // outputs
    along = count == len(dims) or dims[0].stride < dims[count].stride
    extent, other = (inputs, outputs) if along else (outputs, inputs)
    contiguous = dims[0 if along else count].stride == 1
    vector = 1
    if contiguous and along and extent >= 128 and count == 1:
        extent //= kernel.input_vector
    elif contiguous and not along:
        vector = _output_vector(dims, count, offset, kernel.output_vector)
        extent //= vector
    width, height = _block_shape(extent, other, kernel.threads // vector)
    step_in, step_out = (width, 1) if along else (1, width)
    if -(-inputs // step_in) >= min(height * _LEAST_SPLIT, _MOST_SPLIT):
        step_in *= height
        split = True
    else:
        step_out *= height
        split = False
    per_thread = -(-inputs // step_in)
    resident = target.multi_processors * (target.threads_per_multi_processor // (width * height))
    grid = -(-(outputs // vector) // step_out)
    if not split or per_thread < _MOST_SPLIT or grid > resident:
        return ()
    wanted = min(-(-resident // grid), -(-per_thread // _LEAST_SPLIT))
    blocks = max(wanted, -(-per_thread // _MOST_SPLIT))
    if blocks <= 1:
        return ()
    size = kernel.accumulator_bytes * outputs * blocks
    return size if along else size * width * vector, 4 * grid


def _output_vector(dims: Sequence[_Dim], count: int, offset: int, most: int) -> int:
    strides = [dim.stride for place, dim in enumerate(dims) if place != count]
    vector = most
    for value in (offset, dims[count].size, *strides):
        while value % vector:
            vector //= 2
    return vector


def _block_shape(extent: int, other: int, threads: int) -> tuple[int, int]:
    wide = last_power(extent) if extent < threads else threads
    high = last_power(other) if other < threads else threads
    width = min(wide, _WARP)
    height = min(high, threads // width)
    return min(wide, threads // height), height


def last_power(number: int) -> int:
    """Return the largest power of two that is not larger.

    >>> last_power(1), last_power(6), last_power(64)
    (1, 4, 64)
    """
    return 1 << (max(1, number).bit_length() - 1)


def _iterated(shape: Sequence[int], strides: Sequence[int], reduced: set[int]) -> list[_Dim]:
    """The dimensions as TensorIterator has them: reduced ones first, by stride, coalesced."""
    output_stride, size = {}, 1
    for place in reversed(range(len(shape))):
        if place not in reduced:
            output_stride[place] = size
            size *= shape[place]
    dims = [
        _Dim(shape[i], strides[i], i in reduced, output_stride.get(i, 0))
        for i in range(len(shape))
        if shape[i] != 1
    ]
    dims.sort(key=lambda d: (not d.reduced, d.stride if d.reduced else d.output_stride))
    merged: list[_Dim] = []
    for dim in dims:
        last = merged[-1] if merged else None
        if last is not None and _merges(last, dim):
            merged[-1] = _Dim(last.size * dim.size, last.stride, dim.reduced, last.output_stride)
        else:
            merged.append(dim)
    return merged


def _merges(last: _Dim, dim: _Dim) -> bool:
    if last.reduced != dim.reduced or last.size * last.stride != dim.stride:
        return False
    return dim.reduced or last.size * last.output_stride == dim.output_stride


def _truth(call: Call) -> Plan:
    """Whether some or all elements are true; other inputs than masks are not converted."""
    tensor = call.args[0]
    whole = call.name in ("aten::any", "aten::all")
    reduced = reduced_dims(tensor, None if whole else call.argument(1, "dim"))
    return scratch(*staging(tensor, reduced, call.target, Kernel(1)))


def _accumulator_bytes(tensor: torch.Tensor) -> int:
    return 8 if tensor.dtype in (torch.float64, torch.int64) else 4


def _reduction(call: Call) -> Plan:
    tensor = call.args[0]
    whole = call.name in ("aten::sum", "aten::mean", "aten::max", "aten::min", "aten::prod")
    place = 2 if call.name.startswith("aten::linalg_vector_norm") else 1
    reduced = reduced_dims(tensor, None if whole else call.argument(place, "dim"))
    result = call.outputs[0]
    kernel = Kernel(_accumulator_bytes(result))
    staged = scratch(*staging(tensor, reduced, call.target, kernel))
    if call.name in ("aten::max", "aten::min") and not tensor.is_contiguous():
        staged = scratch(*staging(tensor.contiguous(), reduced, call.target, kernel))
        return [Give(0), Take(size_of(tensor)), *staged, Drop()]
    if tensor.dtype == result.dtype or _reads_as_fp32(tensor, result):
        return staged
    # Other inputs are converted first, such as a mask that is counted.
    return [Give(0), Take(tensor.numel() * result.element_size()), *staged, Drop()]


def _reads_as_fp32(tensor: torch.Tensor, result: torch.Tensor) -> bool:
    low = tensor.dtype in (torch.float16, torch.bfloat16)
    return low and result.dtype == torch.float32


def _wide(call: Call) -> Plan:
    """Partial results of variances and of positions have 16 bytes."""
    tensor = call.args[0]
    reduced = reduced_dims(tensor, call.argument(1, "dim"))
    return scratch(*staging(tensor, reduced, call.target, Kernel(16)))


def _logsumexp(call: Call) -> Plan:
    """The largest values, whether they are finite, the powers, and their sum."""
    tensor, out = call.args[0], call.outputs[0]
    reduced = reduced_dims(tensor, call.argument(1, "dim"))
    staged = scratch(*staging(tensor, reduced, call.target))
    finite = scratch(size_of(out), out.numel())
    powers = Take(size_of(tensor))
    return [Take(size_of(out)), *staged, *finite, powers, Give(0), *staged, Drop(2)]


def _histogram(call: Call) -> Plan:
    """Its limits are the least and the largest element, unless they are given."""
    tensor, least, most = call.args[0], call.argument(2, "min", 0), call.argument(3, "max", 0)
    if least != most or not tensor.numel():
        return []
    staged = staging(tensor, reduced_dims(tensor, None), call.target)
    limit = scratch(tensor.element_size(), *staged)
    return [Give(0), *limit, *limit]


RULES = {
    **dict.fromkeys(
        (
            *("aten::sum.dim_IntList", "aten::sum", "aten::mean.dim", "aten::mean"),
            *("aten::amax", "aten::amin", "aten::linalg_vector_norm"),
            *("aten::prod", "aten::prod.dim_int", "aten::max", "aten::min"),
        ),
        _reduction,
    ),
    **dict.fromkeys(
        (
            *("aten::var.correction", "aten::var_mean.correction", "aten::std.correction"),
            *("aten::argmax", "aten::argmin"),
        ),
        _wide,
    ),
    **dict.fromkeys(
        (*("aten::any", "aten::any.dim", "aten::any.dims"), *("aten::all", "aten::all.dim")), _truth
    ),
    "aten::histc": _histogram,
    "aten::logsumexp": _logsumexp,
}
