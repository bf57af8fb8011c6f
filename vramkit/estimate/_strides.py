"""Strides of element-wise results in half precision.

Torch's fakes convert the operands first, which packs expanded ones, so that the result may get
other strides than a GPU gives it; copies that follow would be missed, or made up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._prims_common import compute_elementwise_output_strides
from torch._subclasses.fake_tensor import FakeTensor

_HALF = (torch.float16, torch.bfloat16)


def as_on_device(func: Any, args: Any, out: Any) -> Any:
    """Return an operator's result with the strides that a GPU gives it.

    Args:
        func: The operator.
        args: Its arguments.
        out: Its result on fakes.
    """
    if not isinstance(out, FakeTensor) or torch.Tag.pointwise not in func.tags:
        return out
    operands = [each for each in args if isinstance(each, torch.Tensor)]
    if len(operands) < 2 or not any(map(_is_expanded, operands)):
        return out
    if func._schema.is_mutable or all(each.dtype not in _HALF for each in operands):
        return out
    strides = compute_elementwise_output_strides(*(each.expand(out.shape) for each in operands))
    if strides == out.stride():
        return out
    return out.new_empty_strided(out.shape, strides)


def _is_expanded(tensor: torch.Tensor) -> bool:
    return any(
        not stride and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
