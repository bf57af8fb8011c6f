"""Collectives: what PyTorch allocates for them (c10d/ProcessGroupNCCL.cpp)."""

from __future__ import annotations

from vramkit.estimate._ops._plan import Call, Plan, Rule, scratch, size_of


def _flattened(place: int) -> Rule:
    """Tensors of all ranks in a list go through one tensor of them all."""

    def rule(call: Call) -> Plan:
        return scratch(sum(size_of(tensor) for tensors in call.args[place] for tensor in tensors))

    return rule


RULES = {
    "c10d::allgather_": _flattened(0),
    "c10d::reduce_scatter_": _flattened(1),
}
