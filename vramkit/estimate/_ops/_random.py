"""Random numbers: the order in which results are born, and what drawing takes."""

from __future__ import annotations

import math

from vramkit.estimate._ops._cub import radix_bytes
from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Step, Take, scratch, size_of
from vramkit.estimate._ops._reduce import Kernel, reduced_dims, staging
from vramkit.estimate._ops._scan import scanning
from vramkit.estimate._ops._topk import choosing

_INDEX = 8
# ATen/native/cuda/Randperm.cu wants twelve permutations to be without equal keys by nine in ten.
_LOG_WITHOUT_EQUALS = 12 * math.log2(0.9)


def _dropout(_: Call) -> Plan:
    return [Give(1), Give(0)]


def _randperm(call: Call) -> Plan:
    """Positions are sorted by random keys, which have as few bits as will do."""
    count, result = call.outputs[0].numel(), call.outputs[0]
    if not count:
        return []
    pairs = (6.0 * count * count + 1) / -_LOG_WITHOUT_EQUALS
    bits = min(64, math.ceil(math.log2(count + pairs)))
    keys = Take((4 if bits <= 32 else 8) * count)
    sort = radix_bytes(count, keys.size_bytes // count, result.element_size(), bits)
    positions = Take(size_of(result))
    return [Give(0), Take(_INDEX), Drop(), positions, keys, keys, *scratch(sort), Drop(3)]


def _multinomial(call: Call) -> Plan:
    x, samples = call.args[0], int(call.args[1])
    if call.argument(2, "replacement", False):
        whole = x.dim() > 0 and x.numel() == x.shape[-1]
        sums = scanning(x.numel(), x.element_size()) if whole else []
        return [Give(0), *[Take(size_of(x))] * 3, *sums, Drop(3)]
    if not x.numel():
        return []
    rows = x.numel() // x.shape[-1]
    ratios = Take(size_of(x))
    if samples == 1:
        chosen = scratch(*staging(x, {x.dim() - 1}, call.target, Kernel(16)))
    else:
        largest = choosing(x, -1, samples, call.target, ordered=True)
        chosen = [Take(x.element_size() * rows * samples), *largest, Drop()]
    return [Give(0), *_checks(call), ratios, *chosen, Drop(3)]


def _checks(call: Call) -> list[Step]:
    """Whether the weights are finite and not below zero, and whether each row has one above it."""
    x = call.args[0]
    element, every = x.element_size(), reduced_dims(x, None)
    extreme = [Take(element), *scratch(*staging(x, every, call.target)), Take(1)]
    bounds = [*extreme, *extreme, Take(1), Drop(4, below=1)]
    if x.dim() == 1:
        summed = [Take(element), *scratch(*staging(x, every, call.target)), Take(1)]
        return [*bounds, *summed, Drop(1, below=1), *scratch(1)]
    rows = x.shape[0]
    summed = [Take(element * rows), *scratch(*staging(x, {1}, call.target)), Take(rows)]
    return [*bounds, *summed, Take(1), Drop(2, below=1), *scratch(1)]


def _normal(call: Call) -> Plan:
    """Numbers of the standard distribution are scaled by a tensor of factors."""
    return [Give(0), Take(size_of(call.outputs[0])), Drop()]


RULES = {
    "aten::normal.Tensor_float": _normal,
    "aten::native_dropout": _dropout,
    **dict.fromkeys(("aten::randperm", "aten::randperm.generator"), _randperm),
    "aten::multinomial": _multinomial,
}
