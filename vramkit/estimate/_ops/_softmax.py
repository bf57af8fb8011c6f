"""Softmax: the product of gradient and result that its backward pass makes."""

from __future__ import annotations

from vramkit.estimate._ops._plan import Call, Plan, scratch, size_of


def _backward(call: Call) -> Plan:
    return scratch(size_of(call.args[0]))


RULES = {"aten::_softmax_backward_data": _backward}
