"""Losses that build a tensor of the input's size before they reduce it."""

from __future__ import annotations

import torch

from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Step, Take, scratch, size_of
from vramkit.estimate._ops._reduce import reduced_dims, staging

_NO_REDUCTION = 0


def _structured(call: Call) -> Plan:
    """The result is allocated at full size and then shrunk to a scalar; its storage stays large."""
    x = call.args[0]
    if call.argument(2, "reduction", 1) == _NO_REDUCTION:
        return []
    return [Give(0, size_of(x)), Take(size_of(x)), *_reducing(x, call), Drop()]


def _with_logits(call: Call) -> Plan:
    x = call.args[0]
    if call.argument(4, "reduction", 1) == _NO_REDUCTION:
        return [Take(size_of(x)), Give(0), Drop()]
    sums = _reducing(x, call)
    return [Take(size_of(x)), Take(size_of(x)), Give(0), *sums, Drop(2)]


def _huber(call: Call) -> Plan:
    x = call.args[0]
    if call.argument(2, "reduction", 1) == _NO_REDUCTION:
        return []
    return [Take(size_of(x)), Give(0), *_reducing(x, call), Drop()]


def _cross_entropy(call: Call) -> Plan:
    """The reduced loss is copied into the storage of all losses."""
    x = call.args[0]
    if call.argument(3, "reduction", 1) == _NO_REDUCTION:
        return []
    return [Give(0, size_of(x)), Take(x.element_size()), *_reducing(x, call), Drop()]


def _reducing(x: torch.Tensor, call: Call) -> list[Step]:
    return scratch(*staging(x.contiguous(), reduced_dims(x, None), call.target))


RULES = {
    "aten::binary_cross_entropy": _cross_entropy,
    "aten::mse_loss": _structured,
    "aten::smooth_l1_loss": _structured,
    "aten::huber_loss": _huber,
    "aten::binary_cross_entropy_with_logits": _with_logits,
}
