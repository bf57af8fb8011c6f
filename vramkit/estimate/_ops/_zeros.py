"""Tensors of zeros that forward-mode derivatives use: they have no memory on any device."""

from __future__ import annotations

from vramkit.estimate._ops._plan import Call, Host, Plan


def _without_memory(_: Call) -> Plan:
    return [Host(0)]


RULES = {"aten::_efficientzerotensor": _without_memory}
