"""Quantised tensors: fakes of them have the dtype, and so the size, of their input."""

from __future__ import annotations

import torch

from vramkit.estimate._ops._plan import Call, Give, Plan


def _quantize(call: Call) -> Plan:
    given = (*call.args, *call.kwargs.values())
    dtype = next(each for each in given if isinstance(each, torch.dtype))
    return [Give(0, call.args[0].numel() * dtype.itemsize)]


RULES = dict.fromkeys(
    (
        *("aten::quantize_per_tensor", "aten::quantize_per_tensor.tensor_qparams"),
        *("aten::quantize_per_tensor_dynamic", "aten::quantize_per_channel"),
    ),
    _quantize,
)
