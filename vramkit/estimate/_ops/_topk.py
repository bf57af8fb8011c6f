"""The largest elements: counts of digits where several blocks of threads share a row.

As ``ATen/native/cuda/TensorTopK.cu`` lays it out.
"""

from __future__ import annotations

import torch

from vramkit.estimate._ops._cub import BY_KEY_TILE, scan_bytes
from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Step, Take, scratch, size_of
from vramkit.estimate._ops._sort import sorting
from vramkit.estimate._target import Target

# Rows longer than this are shared, by the largest number of rows for which that holds.
_SHARED_FROM = ((20, 20_000), (40, 10_000), (80, 8_000), (199, 5_000), (799, 3_000), (4_000, 800))
_SHARED_OF_MANY = 400
_THREADS, _BLOCKS_PER_PROCESSOR = 256, 6
_ITEMS_PER_THREAD = (4, 64)
_DIGITS, _INDEX = 256, 8
_SORTED_ALONE = 4096


def choosing(
    tensor: torch.Tensor, dim: int, chosen: int, target: Target, *, ordered: bool
) -> list[Step]:
    """Return what choosing the largest of a dimension takes beside values and positions."""
    length = tensor.shape[dim] if tensor.dim() else 1
    if tensor.numel() == 0:
        return []
    rows = tensor.numel() // length
    plan: list[Step] = [] if tensor.is_contiguous() else [Take(size_of(tensor))]
    copies = len(plan)
    if length >= _shared_from(rows):
        plan += _shared(rows, length, tensor.element_size(), target)
    plan += [Drop(copies)] if copies else []
    if ordered and chosen > _SORTED_ALONE:
        positions, values = (
            Take(_INDEX * rows * chosen),
            Take(tensor.element_size() * rows * chosen),
        )
        like = torch.empty(rows, chosen, dtype=tensor.dtype, device="meta")
        plan += [positions, values, *sorting(like, 1), positions, Drop(3)]
    return plan


def _shared_from(rows: int) -> int:
    return next((length for most, length in _SHARED_FROM if rows <= most), _SHARED_OF_MANY)


def _shared(rows: int, length: int, element_bytes: int, target: Target) -> list[Step]:
    threads = target.multi_processors * _BLOCKS_PER_PROCESSOR * _THREADS
    least, most = _ITEMS_PER_THREAD
    items = max(least, min(most, -(-rows * length // threads)))
    blocks = rows * -(-length // (items * _THREADS))
    scans = [*scratch(scan_bytes(blocks, BY_KEY_TILE))] * 2
    found = [Take(element_bytes * rows), Take(_INDEX * rows), Take(_INDEX * rows)]
    counts = [Take(2 * _DIGITS * blocks), Take(4 * _DIGITS * rows), Take(4 * blocks)]
    taken = [*found, *counts, Take(4 * blocks)]
    return [*taken, *scans, Drop(len(taken))]


def _topk(call: Call) -> Plan:
    tensor, dim = call.args[0], int(call.argument(2, "dim", -1))
    chosen, ordered = int(call.argument(1, "k")), bool(call.argument(4, "sorted", True))
    return [Give(0), Give(1), *choosing(tensor, dim, chosen, call.target, ordered=ordered)]


RULES = {"aten::topk": _topk}
