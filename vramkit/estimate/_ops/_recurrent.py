"""Fused cells of recurrent networks (ATen/native/cuda/RNN.cu): what they return and sum inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vramkit.estimate._ops._plan import Call, Give, Plan, Step, scratch
from vramkit.estimate._ops._reduce import staging

# What the forward pass of a GRU's cell keeps, in multiples of the hidden state, and its gates.
_GRU_KEEPS, _GRU_GATES = 5, 3


def _gru_cell(
    input_gates: Any, hidden_gates: Any, hx: Any, input_bias: Any = None, hidden_bias: Any = None
) -> tuple[Any, Any]:
    del input_gates, hidden_gates, input_bias, hidden_bias
    return torch.empty_like(hx), hx.new_empty(hx.shape[0], _GRU_KEEPS * hx.shape[1])


def _gru_cell_backward(grad_hy: Any, workspace: Any, has_bias: bool) -> tuple[Any, ...]:
    rows, columns = workspace.shape[0], workspace.shape[1] // _GRU_KEEPS * _GRU_GATES
    gates = [workspace.new_empty(rows, columns) for _ in range(2)]
    biases = [workspace.new_empty(columns) if has_bias else None for _ in range(2)]
    return (*gates, torch.empty_like(grad_hy), *biases)


def _sums(call: Call) -> Plan:
    plan: list[Step] = [Give(0), Give(1), Give(2)]
    for place in (0, 1):
        if call.outputs[3 + place] is not None:
            staged = scratch(*staging(call.outputs[place], {0}, call.target))
            plan += [Give(3 + place), *staged]
    return plan


def _workspace_first(call: Call) -> Plan:
    states = len(call.outputs) - 1
    return [Give(states), *map(Give, range(states))]


RULES = {
    "aten::_thnn_fused_gru_cell": _workspace_first,
    "aten::_thnn_fused_lstm_cell": _workspace_first,
    "aten::_thnn_fused_gru_cell_backward": _sums,
}

# What fakes run where torch has no implementation for them.
RESULTS: dict[str, Callable[..., Any]] = {
    "_thnn_fused_gru_cell": _gru_cell,
    "_thnn_fused_gru_cell_backward": _gru_cell_backward,
}
