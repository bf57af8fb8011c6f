"""``nn.EmbeddingBag``: the order of its results, and what its gradient sorts and adds up.

The kernels are those of ATen/native/cuda/EmbeddingBag.cu and EmbeddingBackwardKernel.cu; the
temporary storage of CUB is as recorded on an H200 for 1,280, 21,000 and 81,920 indices.
"""

from __future__ import annotations

from vramkit.estimate._ops._cub import (
    BY_KEY_TILE,
    UNIQUE_TILE,
    WIDE_SUM_TILE,
    radix_bytes,
    scan_bytes,
)
from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Step, Take, scratch, size_of

MEAN, MAX = 1, 2
_ROWS_PER_THREAD = 10
_COUNT_BYTES = 8


def _forward(_: Call) -> Plan:
    return [Give(2), Give(1), Give(0), Give(3)]


def _backward(call: Call) -> Plan:
    """The gradient of a dense table; that of the largest elements is written without sorting."""
    gradient, indices = call.args[0], call.args[1]
    rows, by_frequency, mode = int(call.args[6]), call.args[7], call.args[8]
    count, index_bytes = indices.numel(), indices.element_size()
    copied: list[Step] = [] if gradient.is_contiguous() else [Take(size_of(gradient))]
    if mode == MAX or not count:
        return [*copied, Give(0), Drop(len(copied))] if copied else []
    of_indices, segments = index_bytes * count, min(count, rows)
    plan: list[Step] = [*copied, Take(of_indices), Take(of_indices)]
    plan += scratch(of_indices, radix_bytes(count, index_bytes, index_bytes))
    if by_frequency:
        by_key = scratch(scan_bytes(count, BY_KEY_TILE))
        plan += [Take(of_indices), *by_key, *by_key]
    plan += [Give(0), Take(of_indices), Take(_COUNT_BYTES)]
    plan += scratch(of_indices, scan_bytes(count, UNIQUE_TILE))
    plan += [Take(index_bytes * segments), Take(index_bytes * segments)]
    plan += scratch(scan_bytes(segments, WIDE_SUM_TILE))
    partial = count // _ROWS_PER_THREAD + segments
    sums = partial * int(gradient.shape[-1]) * max(4, gradient.element_size())
    plan += [Take(_COUNT_BYTES), Take(index_bytes * partial), Take(sums)]
    taken = sum(isinstance(step, Take) for step in plan)
    dropped = sum(step.count for step in plan if isinstance(step, Drop))
    return [*plan, Drop(taken - dropped)]


RULES = {
    **dict.fromkeys(("aten::_embedding_bag", "aten::_embedding_bag_forward_only"), _forward),
    "aten::_embedding_bag_backward": _backward,
}
