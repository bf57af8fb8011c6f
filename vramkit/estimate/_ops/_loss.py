"""Losses that build a tensor of the input's size before they reduce it."""

from __future__ import annotations

from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Take, scratch, size_of
from vramkit.estimate._ops._reduce import staging

_NO_REDUCTION = 0


def _structured(call: Call) -> Plan:
    """The result is allocated at full size and then shrunk to a scalar; its storage stays large."""
    x = call.args[0]
    if call.argument(2, "reduction", 1) == _NO_REDUCTION:
        return []
    whole = set(range(x.dim()))
    sums = scratch(*staging(x.contiguous(), whole, call.target))
    return [Give(0, size_of(x)), Take(size_of(x)), *sums, Drop()]


def _with_logits(call: Call) -> Plan:
    x = call.args[0]
    if call.argument(4, "reduction", 1) == _NO_REDUCTION:
        return [Take(size_of(x)), Give(0), Drop()]
    sums = scratch(*staging(x.contiguous(), set(range(x.dim())), call.target))
    return [Take(size_of(x)), Take(size_of(x)), Give(0), *sums, Drop(2)]


RULES = {
    "aten::mse_loss": _structured,
    "aten::smooth_l1_loss": _structured,
    "aten::huber_loss": _structured,
    "aten::binary_cross_entropy_with_logits": _with_logits,
}
