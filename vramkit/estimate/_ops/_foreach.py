"""Operators on lists of tensors, as optimizers use them."""

from __future__ import annotations

from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Take

_CHUNK_ELEMENTS = 65_536


def _norm(call: Call) -> Plan:
    """Partial norms of all chunks of all tensors come first."""
    tensors = call.args[0]
    if not tensors:
        return []
    chunks = max(-(-tensor.numel() // _CHUNK_ELEMENTS) for tensor in tensors)
    given = [Give(place) for place in range(len(call.outputs))]
    return [Take(len(tensors) * chunks * 4), *given, Drop()]


RULES = {"aten::_foreach_norm.Scalar": _norm}
