"""Scans, and what scans inside: sums along a dimension, masks, and what is not zero."""

from __future__ import annotations

from vramkit.estimate._ops._copies import copies
from vramkit.estimate._ops._cub import (
    EXCLUSIVE_TILE,
    HALF_SUM_TILE,
    SELECT_TILE,
    SUM_TILE,
    WIDE_SUM_TILE,
    reduction_bytes,
    scan_bytes,
)
from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Step, Take, scratch, size_of
from vramkit.estimate._target import Target

_COUNT_BYTES, _INDEX = 4, 8


def scanning(count: int, element_bytes: int) -> list[Step]:
    """Return what adding up all elements of a vector takes."""
    if element_bytes > _COUNT_BYTES:
        return scratch(scan_bytes(count, WIDE_SUM_TILE, element_bytes))
    if element_bytes < _COUNT_BYTES:
        return scratch(scan_bytes(count, HALF_SUM_TILE))
    return scratch(scan_bytes(count, SUM_TILE, _COUNT_BYTES))


def nonzero(count: int, target: Target, births: Step) -> list[Step]:
    """Return what finding those of some elements takes that are not zero.

    Args:
        count: How many there are.
        target: The GPU.
        births: The block of the places that are found.
    """
    later = int(isinstance(births, Take))
    counting = scratch(reduction_bytes(count, target))
    selecting = scratch(scan_bytes(count, SELECT_TILE, _COUNT_BYTES))
    return [Take(_COUNT_BYTES), *counting, births, *selecting, Drop(1, below=later)]


def _nonzero(call: Call) -> Plan:
    return nonzero(call.args[0].numel(), call.target, Give(0))


def _scan(call: Call) -> Plan:
    """Only what is one vector goes to CUB; inputs of another dtype, as masks, are converted."""
    x, result = call.args[0], call.outputs[0]
    dim = int(call.argument(1, "dim"))
    whole = x.dim() > 0 and x.numel() == x.shape[dim] and x.is_contiguous()
    scan = scanning(x.numel(), result.element_size()) if whole else []
    if x.dtype == result.dtype:
        copied = copies(x)
        return [Give(0), *copied, *scan, Drop(len(copied))]
    return [Give(0), Take(size_of(result)), *scan, Drop()]


def _masked_scatter(call: Call) -> Plan:
    """Sums of the mask say which element of the source comes."""
    count = call.args[0].numel()
    sums = scratch(scan_bytes(count, EXCLUSIVE_TILE))
    return [Give(0), Take(_INDEX * count), *sums, Drop()]


def _scatter_reduce(call: Call) -> Plan:
    """Means are divided by the counted sources."""
    if call.argument(4, "reduce") != "mean":
        return []
    source, result = call.args[3], call.outputs[0]
    counted = scratch(size_of(source), size_of(result), result.numel())
    return [Give(0), *counted]


RULES = {
    **dict.fromkeys(("aten::cumsum", "aten::cumprod", "aten::logcumsumexp"), _scan),
    "aten::nonzero": _nonzero,
    **dict.fromkeys(("aten::masked_scatter", "aten::masked_scatter_"), _masked_scatter),
    "aten::scatter_reduce.two": _scatter_reduce,
}
