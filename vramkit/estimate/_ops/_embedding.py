"""Embeddings and indexing: copies of indices, and what sorting them takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vramkit.estimate._ops._cub import UNIQUE_TILE, WIDE_SUM_TILE, radix_bytes, scan_bytes
from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Step, Take, scratch, size_of
from vramkit.estimate._ops._reduce import Kernel, reduced_dims, staging
from vramkit.estimate._target import Target

# Up to so many indices the gradient is made without sorting (ATen/native/cuda/Embedding.cu).
_UNSORTED = 3072
_ROWS_PER_THREAD = 10
_BLOCKS_PER_SM, _MOST_THREADS, _WARP = 4, 1024, 32
_HALF = (torch.float16, torch.bfloat16)
_INDEX = 8


# A tensor, the places of its elements, and the values that are put there.
Put = tuple[torch.Tensor, Sequence[torch.Tensor | None], torch.Tensor]


def _embedding(call: Call) -> Plan:
    indices = call.args[1]
    if indices.is_contiguous():
        return []
    return [Take(size_of(indices)), Give(0), Drop()]


def _embedding_backward(call: Call) -> Plan:
    gradient, indices, rows = call.args[0], call.args[1], call.args[2]
    count = indices.numel()
    if count <= _UNSORTED:
        return []
    of_indices = _INDEX * count
    segments = min(count, int(rows))
    partial = count // _ROWS_PER_THREAD + segments
    plan: list[Step] = [] if indices.is_contiguous() else [Take(of_indices)]
    plan += [Take(of_indices), Take(of_indices)]
    plan += scratch(of_indices, radix_bytes(count))
    plan += [Give(0), Take(of_indices), Take(_INDEX)]
    plan += scratch(of_indices, scan_bytes(count, UNIQUE_TILE))
    plan += [Take(_INDEX * segments), Take(_INDEX * segments)]
    plan += scratch(scan_bytes(segments, WIDE_SUM_TILE))
    width = int(gradient.shape[-1])
    sums = [Take(partial * width * 4)]
    if _adds_atomically(call.target, segments, partial, width):
        whole = [Take(int(rows) * width * 4)] if gradient.dtype in _HALF else []
        sums = [Take(_INDEX * partial), *whole]
    plan += [Take(_INDEX), Take(_INDEX * partial), *sums]
    taken = sum(isinstance(step, Take) for step in plan)
    dropped = sum(step.count for step in plan if isinstance(step, Drop))
    return [*plan, Drop(taken - dropped)]


def _adds_atomically(target: Target, segments: int, partial: int, width: int) -> bool:
    """Few long segments would leave multiprocessors idle if they were added up one by one."""
    warped = -(-width // _WARP) * _WARP
    blocks = -(-segments * warped // min(warped, _MOST_THREADS))
    few = blocks < target.multi_processors * _BLOCKS_PER_SM and partial > 4 * blocks
    return few and not torch.are_deterministic_algorithms_enabled()


def _index_put(call: Call) -> Plan:
    indices = [index for index in call.args[1] if isinstance(index, torch.Tensor)]
    if not call.argument(3, "accumulate", False) or not indices:
        return []
    unsafe = bool(call.argument(4, "unsafe", False))
    return index_put_plan(call.target, call.args[:3], unsafe=unsafe)


def index_put_plan(target: Target, put: Put, *, unsafe: bool, kept: int = 0) -> Plan:
    """Return what adding values at places takes.

    Args:
        target: The GPU.
        put: What they are added to, the places in its first dimensions, None for all, and they.
        unsafe: Whether something vouches for the indices, so that they are not compared first.
        kept: How many blocks that were taken before are dropped once the places are added.
    """
    tensor, indices, _ = put
    found = [index for index in indices if index is not None]
    checks: list[Step] = []
    if not unsafe:
        for index in found:
            staged = staging(index, reduced_dims(index, None), target, Kernel(_INDEX))
            extreme = [Take(_INDEX), *scratch(*staged), *scratch(1), Drop()]
            checks += [*extreme, *extreme]
    count = torch.broadcast_shapes(*(index.shape for index in found)).numel()
    of_indices = Take(_INDEX * count)
    sorts = scratch(radix_bytes(count, bits=_index_bits(tensor, indices)))
    sorting: list[Step] = [of_indices, of_indices, of_indices, *sorts]
    # Places of the first indices, to which those of the others are added.
    places: list[Step] = [of_indices, of_indices, Drop()]
    places += [of_indices, of_indices, Drop(2, below=1)] * (len(found) - 1)
    places += [Drop(kept, below=1)] if kept else []
    values = _whole_values(put)
    copied = [] if values.is_contiguous() else [Take(size_of(values))]
    return [*checks, *places, *copied, *sorting, Drop(4 + len(copied))]


def _whole_values(put: Put) -> torch.Tensor:
    tensor, indices, values = put
    found = [place for place, index in enumerate(indices) if index is not None]
    shape = torch.broadcast_shapes(*(index.shape for index in indices if index is not None))
    others = [n for place, n in enumerate(tensor.shape) if place not in found]
    before = found[0] if found[-1] - found[0] == len(found) - 1 else 0
    return values.expand(*others[:before], *shape, *others[before:])


def _index_bits(tensor: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> int:
    """How many bits tell the slices apart that indices can name."""
    places = [place for place, index in enumerate(indices) if index is not None]
    slices = math.prod(tensor.shape[: places[-1] + 1])
    return max(1, (slices - 1).bit_length())


def _index_put_copy(call: Call) -> Plan:
    return [Give(0), *_index_put(call)]


RULES = {
    "aten::embedding": _embedding,
    "aten::embedding_dense_backward": _embedding_backward,
    "aten::index_put": _index_put_copy,
    "aten::index_put_": _index_put,
    "aten::_index_put_impl_": _index_put,
}
