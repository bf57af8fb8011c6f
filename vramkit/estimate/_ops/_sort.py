"""Sorting, and what sorts inside: copies, positions, and the temporary storage of CUB.

``launch_stable_sort_kernel`` and ``sort_cuda_kernel`` of ``ATen/native/cuda``, as recorded.
"""

from __future__ import annotations

import torch

from vramkit.estimate._ops._cub import ALIGNMENT, aligned, radix_bytes
from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Step, Take, scratch, size_of

# A row of so many elements is sorted by one block of threads, a longer one by CUB.
_ONE_BLOCK = 4096
# Fewer rows than this are sorted as one, with their number as a second key.
_FEW_ROWS = 128
_INDEX = 8


def sorting(tensor: torch.Tensor, dim: int) -> list[Step]:
    """Return what sorting a dimension of a tensor takes beside values and positions."""
    length = tensor.shape[dim] if tensor.dim() else 1
    if tensor.numel() < 2:
        return []
    if length <= _ONE_BLOCK:
        return scratch(_INDEX * length)
    inside = _by_cub(tensor.numel(), length, tensor.element_size())
    if tensor.stride(dim) == 1 and torch._debug_has_internal_overlap(tensor) == 0:
        return inside
    size = size_of(tensor)
    copies: list[Step] = [Take(size), Take(size), Take(_INDEX * tensor.numel())]
    return [*copies, *inside, Drop(len(copies))]


def _by_cub(count: int, length: int, key_bytes: int) -> list[Step]:
    rows = count // length
    positions = Take(_INDEX * count)
    if rows == 1:
        return [positions, *scratch(radix_bytes(count, key_bytes)), Drop()]
    if rows >= _FEW_ROWS:
        buffers = aligned(key_bytes * count) + aligned(_INDEX * count) + ALIGNMENT - 1
        return [positions, *scratch(buffers), Drop()]
    keys = scratch(key_bytes * count, radix_bytes(count, key_bytes))
    by_row = scratch(radix_bytes(count, 8, 0, (rows - 1).bit_length()))
    # The storage of CUB goes first, and then the sorted keys.
    return [positions, positions, *keys, *by_row, Drop(2)]


def _sort(call: Call) -> Plan:
    tensor = call.args[0]
    by_name = call.name == "aten::sort.stable"
    dim = call.kwargs.get("dim", -1) if by_name else call.argument(1, "dim", -1)
    return [Give(0), Give(1), *sorting(tensor, int(dim))]


def _median(call: Call) -> Plan:
    """Of all elements: they are sorted, and the one in the middle is taken unless one is NaN."""
    tensor, positions = call.args[0].flatten(), Take(_INDEX * call.args[0].numel())
    sorted_ = [Take(size_of(tensor)), positions, *sorting(tensor, 0), Drop()]
    return [*sorted_, Take(1), Give(0), Drop(2)]


RULES = {
    **dict.fromkeys(("aten::sort", "aten::sort.stable"), _sort),
    "aten::median": _median,
}
