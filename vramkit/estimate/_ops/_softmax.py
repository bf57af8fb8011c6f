"""Softmax: the product of gradient and result that its backward pass makes."""

from __future__ import annotations

import torch
from torch._prims_common import compute_elementwise_output_strides

from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Take, scratch, size_of


def _backward(call: Call) -> Plan:
    """The kernel takes a contiguous product, which may get the gradient's strides."""
    gradient, output = call.args[:2]
    product = Take(size_of(gradient))
    strides = compute_elementwise_output_strides(gradient, output)
    if torch.empty_strided(gradient.shape, strides, device="meta").is_contiguous():
        return scratch(product.size_bytes)
    return [Give(0), product, product, Drop(2)]


RULES = {"aten::_softmax_backward_data": _backward}
