"""Sliding windows as columns: results of CUDA that are made in the size of the input first."""

from __future__ import annotations

from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Step, Take, size_of


def _im2col(call: Call) -> Plan:
    tensor = call.args[0]
    copied: list[Step] = [] if tensor.is_contiguous() else [Take(size_of(tensor))]
    return [Take(size_of(tensor)), *copied, Give(0), Drop(1 + len(copied))]


def _col2im(call: Call) -> Plan:
    """A storage never shrinks."""
    columns, result = call.args[0], call.outputs[0]
    copied: list[Step] = [] if columns.is_contiguous() else [Take(size_of(columns))]
    size = max(size_of(columns), size_of(result))
    return [Give(0, size), *copied, *([Drop()] if copied else [])]


RULES = {"aten::im2col": _im2col, "aten::col2im": _col2im}
