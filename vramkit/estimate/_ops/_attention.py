"""Scaled dot product attention: which kernel a GPU takes, and what that allocates.

The choice follows ``ATen/native/transformers/cuda/sdp_utils.cpp``: from compute capability 9 on
with cuDNN 9.15 or later cuDNN's kernel comes first, otherwise the flash kernel; then the
memory-efficient one, and at last plain products.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from vramkit.estimate._ops._plan import Call, Drop, Give, Host, Plan, Step, Take, scratch
from vramkit.estimate._target import Target

_HALF = (torch.float16, torch.bfloat16)
_SEEDS = 256
_BLOCK = 64
_LOCKS = 16


def choose(target: Target, q: Any, k: Any, v: Any, mask: Any, dropout: float, causal: bool) -> str:
    """Return "cudnn", "flash", "efficient" or "math"."""
    four = q.dim() == 4 and k.dim() == 4 and v.dim() == 4
    last = q.stride(-1) == 1 and k.stride(-1) == 1 and v.stride(-1) == 1
    if not four or not last:
        return "math"
    if _cudnn_serves(target, q, k, v, mask, dropout):
        return "cudnn"
    if _flash_serves(target, q, k, v, mask, causal):
        return "flash"
    return "efficient" if _efficient_serves(target, q, k, v, mask) else "math"


def _cudnn_serves(target: Target, q: Any, k: Any, v: Any, mask: Any, dropout: float) -> bool:
    if target.capability[0] not in (9, 10) or target.cudnn_version < 91500:
        return False
    width, value_width = q.shape[-1], v.shape[-1]
    fits = width % 8 == 0 and value_width % 8 == 0 and width <= 256 and value_width <= 256
    if not fits or q.dtype not in _HALF or k.shape[2] <= 1:
        return False
    if mask is not None and mask.requires_grad:
        return False
    return not (dropout and q.shape[2] == 1)


def _flash_serves(target: Target, q: Any, k: Any, v: Any, mask: Any, causal: bool) -> bool:
    if target.capability < (8, 0) or q.dtype not in _HALF or mask is not None:
        return False
    same_width = q.shape[-1] == k.shape[-1] == v.shape[-1]
    return bool(same_width and q.shape[-1] <= 256 and not (causal and q.shape[2] != k.shape[2]))


def _efficient_serves(target: Target, q: Any, k: Any, v: Any, mask: Any) -> bool:
    if q.dtype == torch.bfloat16 and target.capability < (8, 0):
        return False
    if mask is not None and mask.stride(-1) != 1:  # such as T5's position bias
        return False
    unit = 8 if q.dtype in _HALF else 4
    aligned = q.shape[-1] % unit == 0 and v.shape[-1] % unit == 0
    return bool(aligned and q.shape[-1] == k.shape[-1])


def _cudnn_forward(_: Call) -> Plan:
    # Seed and offset of dropout come first.
    return [Give(6), Give(7), Give(0), Give(1), *scratch(_SEEDS)]


def _cudnn_backward(call: Call) -> Plan:
    """A fp32 accumulator of the query's gradient, row sums, and full heads of grouped queries."""
    q, k, v = call.args[1:4]
    batch, heads, length, _ = q.shape
    size = q.numel() * 4 + batch * heads * length * 4 + _SEEDS
    if k.shape[1] != heads:
        size += batch * heads * k.shape[2] * (k.shape[3] + v.shape[3]) * q.element_size()
    return [Give(0), Give(1), Give(2), *scratch(size)]


def _efficient_forward(_: Call) -> Plan:
    return [Give(0), Give(1), Host(2), Host(3)]


def _flash_backward(call: Call) -> Plan:
    q = call.args[1]
    batch, heads, length, width = q.shape
    rows = batch * heads * -(-length // 128) * 128
    padded = -(-width // 32) * 32
    return [Give(0), Give(1), Give(2), *scratch(rows * 4, rows * padded * 4)]


def _efficient_backward(call: Call) -> Plan:
    """Row sums, made of a product where the input is fp32, and an accumulator with its locks."""
    q, out = call.args[1], call.args[5]
    batch, heads, length, width = q.shape
    given: list[Step] = [Give(i) for i in range(4) if call.outputs[i] is not None]
    rows = batch * heads * length * 4
    blocks = batch * heads * -(-length // _BLOCK)
    columns = -(-width // 128) * 128 if width > _BLOCK else _BLOCK
    workspace = blocks * (_BLOCK * columns * 4 + _LOCKS)
    tail: list[Step] = [Take(workspace), Drop(below=1), Drop()]
    if q.dtype in _HALF:
        return [*given, Take(rows), *tail]
    sums: list[Step] = [Take(out.numel() * 4), Take(rows), Take(rows), Drop(2, below=1)]
    return [*given, *sums, *tail]


def _safe_softmax(call: Call) -> Plan:
    """Rows that are masked as a whole are looked for, and set to zero in place."""
    x = call.args[0]
    rows = x.numel() // max(int(x.shape[call.argument(1, "dim")]), 1) if x.dim() else 1
    return [Give(0), *scratch(x.numel(), rows, 4)]


def efficient_mask(mask: Any, q: Any, k: Any) -> Any:
    """Return the mask as the memory-efficient kernel takes it: aligned, and expanded."""
    width = mask.shape[-1]
    if width % 16 or mask.storage_offset():
        mask = torch.nn.functional.pad(mask, (0, 16 - width % 16))[..., :width]
    return mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


def scale_of(scale: float | None, q: Any) -> float:
    """Return the factor of the products."""
    return scale if scale is not None else 1 / math.sqrt(q.shape[-1])


RULES = {
    "aten::_safe_softmax": _safe_softmax,
    "aten::_scaled_dot_product_cudnn_attention": _cudnn_forward,
    "aten::_scaled_dot_product_cudnn_attention_backward": _cudnn_backward,
    "aten::_scaled_dot_product_efficient_attention": _efficient_forward,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
}
