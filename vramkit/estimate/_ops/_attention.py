"""Scaled dot product attention: which kernel a GPU takes, and what that allocates.

The choice follows ``ATen/native/transformers/cuda/sdp_utils.cpp``: from compute capability 9 on
with cuDNN 9.15 or later cuDNN's kernel comes first, otherwise the flash kernel; then the
memory-efficient one, and at last plain products. What the program has disabled, by ``sdpa_kernel``
for instance, is passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from vramkit.estimate._ops._copies import copies
from vramkit.estimate._ops._plan import Call, Drop, Give, Host, Plan, Step, Take, scratch
from vramkit.estimate._target import Target

_HALF = (torch.float16, torch.bfloat16)
_SEEDS = 256
_BLOCK = 64
_ALIGNED = 8
_LOCKS = 16


# What PyTorch calls the kernels; the orders that it sets itself.
_KERNELS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
_OWN_ORDERS = ([1, 2, 0, 3], [3, 1, 2, 0])


@dataclass(frozen=True)
class Attention:
    """The inputs of one call.

    Attributes:
        q: The query.
        k: The key.
        v: The value.
        mask: What is added to the products, or None.
        dropout: The part of the weights that is dropped.
        causal: Whether each position sees those before it only.
        grouped: Whether queries may share keys and values.
    """

    q: Any
    k: Any
    v: Any
    mask: Any
    dropout: float
    causal: bool
    grouped: bool = False

    @property
    def same_heads(self) -> bool:
        """Whether there are as many heads of keys as of queries."""
        return bool(self.q.dim() < 3 or self.q.shape[-3] == self.k.shape[-3])

    @property
    def fits_kernels(self) -> bool:
        """Whether the layout is one that kernels other than plain products take."""
        parts = (self.q, self.k, self.v)
        layout = all(part.dim() == 4 and part.stride(-1) == 1 for part in parts)
        return layout and (self.same_heads or self.grouped)


def choose(target: Target, call: Attention) -> str | None:
    """Return "cudnn", "flash", "efficient" or "math"; None where the program allows no other."""
    cuda = torch.backends.cuda
    serves = {
        "cudnn": cuda.cudnn_sdp_enabled() and _cudnn_serves(target, call),
        "flash": cuda.flash_sdp_enabled() and _flash_serves(target, call),
        "efficient": cuda.mem_efficient_sdp_enabled() and _efficient_serves(target, call),
        "math": cuda.math_sdp_enabled(),
    }
    return next((name for name in _order(target) if serves[name]), None)


def _order(target: Target) -> list[str]:
    """The program's order, where it has set one."""
    order = torch._C._get_sdp_priority_order()[: len(_KERNELS)]
    if order in _OWN_ORDERS:
        order = _OWN_ORDERS[_prefers_cudnn(target)]
    return [_KERNELS[number] for number in order if number in _KERNELS]


def _prefers_cudnn(target: Target) -> bool:
    return target.capability[0] in (9, 10) and target.cudnn_version >= 91500


def _cudnn_serves(target: Target, call: Attention) -> bool:
    q, k, width, value_width = call.q, call.k, call.q.shape[-1], call.v.shape[-1]
    if target.capability < (8, 0) or not call.fits_kernels:
        return False
    fits = width % 8 == 0 and value_width % 8 == 0 and width <= 256 and value_width <= 256
    if not fits or q.dtype not in _HALF or k.shape[2] <= 1:
        return False
    if call.mask is not None and (call.mask.requires_grad or call.mask.stride(-1) != 1):
        return False
    return not (call.dropout and q.shape[2] == 1)


def _flash_serves(target: Target, call: Attention) -> bool:
    q, k, v = call.q, call.k, call.v
    if target.capability < (8, 0) or q.dtype not in _HALF or call.mask is not None:
        return False
    same_width = q.shape[-1] == k.shape[-1] == v.shape[-1] and call.fits_kernels
    return bool(
        same_width and q.shape[-1] <= 256 and not (call.causal and q.shape[2] != k.shape[2])
    )


def _efficient_serves(target: Target, call: Attention) -> bool:
    q, k, v = call.q, call.k, call.v
    if not call.fits_kernels or not call.same_heads:
        return False
    if q.dtype not in (*_HALF, torch.float32):
        return False
    if q.dtype == torch.bfloat16 and target.capability < (8, 0):
        return False
    if call.mask is not None and call.mask.stride(-1) != 1:  # such as T5's position bias
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
    out = call.args[4]
    copied = copies(call.args[0], taken=lambda each: each.stride() == out.stride())
    return [Give(0), Give(1), Give(2), *copied, *scratch(size), Drop(len(copied))]


def _efficient_forward(_: Call) -> Plan:
    return [Give(0), Give(1), Host(2), Host(3)]


def _flash_backward(call: Call) -> Plan:
    q = call.args[1]
    batch, heads, length, width = q.shape
    rows = batch * heads * -(-length // 128) * 128
    padded = -(-width // 32) * 32
    work = scratch(rows * 4, rows * padded * 4)
    copied = copies(call.args[0].transpose(1, 2), call.args[4].transpose(1, 2))
    return [*copied, Give(0), Give(1), Give(2), *work, Drop(len(copied))]


def _efficient_backward(call: Call) -> Plan:
    """Row sums, made of a product where the input is fp32, and an accumulator with its locks."""
    q, out = call.args[1], call.args[5]
    batch, heads, length, width = q.shape
    given: list[Step] = [Give(i) for i in range(4) if call.outputs[i] is not None]
    rows = batch * heads * length * 4
    blocks = batch * heads * -(-length // _BLOCK)
    columns = -(-width // 128) * 128 if width > _BLOCK else _BLOCK
    workspace = blocks * (_BLOCK * columns * 4 + _LOCKS)
    copied = copies(call.args[0].transpose(1, 2))
    tail: list[Step] = [Take(workspace), Drop(below=1), Drop(1 + len(copied))]
    if q.dtype in _HALF:
        return [*copied, *given, Take(rows), *tail]
    sums: list[Step] = [Take(out.numel() * 4), Take(rows), Take(rows), Drop(2, below=1)]
    return [*copied, *given, *sums, *tail]


def _safe_softmax(call: Call) -> Plan:
    """Rows that are masked as a whole are looked for, and set to zero in place."""
    x = call.args[0]
    rows = x.numel() // max(int(x.shape[call.argument(1, "dim")]), 1) if x.dim() else 1
    return [Give(0), *scratch(x.numel(), rows, 4)]


def efficient_mask(mask: Any, q: Any, k: Any) -> Any:
    """Return the mask as the memory-efficient kernel takes it: aligned, and expanded."""
    width = mask.shape[-1]
    if any(stride % _ALIGNED for stride in mask.stride()[:-1]):
        mask = torch.nn.functional.pad(mask, (0, _ALIGNED - width % _ALIGNED))[..., :width]
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
