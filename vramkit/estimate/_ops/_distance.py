"""Distances of all pairs, where a matrix product of widened vectors gives them."""

from __future__ import annotations

import math

from vramkit.estimate._ops._plan import Call, Drop, Give, Keep, Plan, Step, Take, size_of


def _euclidean(call: Call) -> Plan:
    """Each vector gets its squared norm and a one."""
    first, second = call.args[:2]
    plan: list[Step] = []
    for x in (first, second):
        norms = Take(math.prod(x.shape[:-1]) * x.element_size())
        plan += [Take(size_of(x)), norms, Drop(1, below=1), norms]
    wide = [
        Take(math.prod(x.shape[:-1]) * (x.shape[-1] + 2) * x.element_size())
        for x in (first, second)
    ]
    plan += [Take(size_of(first)), wide[0], Drop(2, below=4), Drop(1, below=1)]
    product: list[Step] = [Give(0), Keep("cuBLAS", call.target.cublas_bytes)]
    return [*plan, wide[1], Drop(2, below=2), *product, Drop(2)]


def _pdist_backward(call: Call) -> Plan:
    """Each pair writes into a row of its own, which are added up."""
    x = call.args[1]
    return [Give(0), Take((x.shape[0] - 1) * size_of(x)), Drop()] if x.shape[0] > 1 else []


RULES = {"aten::_euclidean_dist": _euclidean, "aten::_pdist_backward": _pdist_backward}
