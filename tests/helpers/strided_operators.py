"""Calls of operators with inputs and gradients of many layouts, to be held against a GPU.

A kernel may take any strides, or copy what it is given; which one does cannot be seen from its
result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers.phases import Case
from helpers.swept_operators import OF_IMAGES
from torch.nn import functional

_CHANNELS_LAST = torch.channels_last
# Shapes of what a layout is made of, and how an image of 8 x 16 x 64 x 64 is seen in it.
_LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "transposed": ((8, 64, 64, 16), lambda x: x.transpose(1, 3)),
    "channels-last": ((8, 64, 64, 16), lambda x: x.permute(0, 3, 1, 2)),
    "part": ((8, 32, 64, 64), lambda x: x[:, :16]),
    "part of channels-last": ((8, 64, 64, 32), lambda x: x.permute(0, 3, 1, 2)[:, :16]),
    "batch last": ((16, 64, 64, 8), lambda x: x.permute(3, 0, 1, 2)),
    "expanded": ((1, 16, 64, 64), lambda x: x.expand(8, -1, -1, -1)),
}
# What makes gradients of such layouts: all of one number, and transposed ones.
_GRADIENTS: dict[str, Callable[[Any], Any]] = {
    "summed": lambda y: y.sum() if y.requires_grad else y,
    "mean of channels": lambda y: y.mean(1) if y.requires_grad and y.dim() > 1 else y,
    "turned": lambda y: y.transpose(1, -1).contiguous() if y.dim() > 2 else y,
}


def _classes(x: Any) -> Any:
    return torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.int64, device=x.device)


def _attention(x: Any) -> Any:
    return functional.scaled_dot_product_attention(x, x, x)


_MORE: dict[str, Callable[[Any], Any]] = {
    "softmax of channels": lambda x: x.softmax(1),
    "softmax": lambda x: x.softmax(-1),
    "softmax bf16": lambda x: x.bfloat16().softmax(1, dtype=torch.float32),
    "log_softmax of channels": lambda x: x.log_softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "cross_entropy": lambda x: functional.cross_entropy(x, _classes(x)),
    "cross_entropy smoothed": lambda x: functional.cross_entropy(
        x, _classes(x), label_smoothing=0.1
    ),
    "cross_entropy of rows": lambda x: functional.cross_entropy(
        x.flatten(2).transpose(1, 2).flatten(0, 1), _classes(x).flatten()
    ),
    "roll two": lambda x: x.roll((-3, -3), (2, 3)),
    "roll three": lambda x: x.roll((1, 2, 3), (1, 2, 3)),
    "roll flat": lambda x: x.roll(5),
    "flip two": lambda x: x.flip(2, 3),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "attention": _attention,
    "attention bf16": lambda x: _attention(x.bfloat16()),
    "attention masked": lambda x: functional.scaled_dot_product_attention(
        x, x, x, x.new_zeros(64, 64)
    ),
    "attention, mask of odd width": lambda x: functional.scaled_dot_product_attention(
        x[:, :, :60], x[:, :, :60], x[:, :, :60], x.new_zeros(16, 60, 60)
    ),
    "attention, mask of odd rows": lambda x: functional.scaled_dot_product_attention(
        x, x[:, :, :63], x[:, :, :63], x.new_zeros(16, 64, 63)
    ),
    "interpolate nearest-exact": lambda x: functional.interpolate(
        x, scale_factor=2, mode="nearest-exact"
    ),
    "interpolate linear": lambda x: functional.interpolate(
        x.flatten(2), scale_factor=2, mode="linear"
    ),
    "interpolate nearest, one dimension": lambda x: functional.interpolate(
        x.flatten(2), scale_factor=2
    ),
    "interpolate trilinear": lambda x: functional.interpolate(
        x.unflatten(1, (4, 4)), scale_factor=2, mode="trilinear"
    ),
    "interpolate nearest, three dimensions": lambda x: functional.interpolate(
        x.unflatten(1, (4, 4)), scale_factor=2
    ),
    "prelu": lambda x: functional.prelu(x, x.new_ones(16)),
    "cumsum of channels": lambda x: x.cumsum(1),
    "sort of channels": lambda x: x.sort(1)[0],
    "topk of channels": lambda x: x.topk(3, 1)[0],
    "gather": lambda x: x.gather(2, _classes(x)[:, None, :8].expand(-1, 16, -1, -1)),
    "gather repeated": lambda x: x.gather(2, _classes(x)[:, None, :8].repeat(1, 16, 1, 1)),
    "index_select": lambda x: x.index_select(1, _classes(x)[0, 0, :20]),
    "linear": lambda x: functional.linear(x, x.new_ones(32, 64), x.new_ones(32)),
    "linear bf16": lambda x: functional.linear(x.bfloat16(), x.new_ones(32, 64).bfloat16()),
    "linear of channels": lambda x: functional.linear(x.permute(0, 2, 3, 1), x.new_ones(32, 16)),
    "matmul of channels": lambda x: x.flatten(2) @ x.flatten(2).mT,
    "layer_norm of channels": lambda x: functional.layer_norm(
        x.permute(0, 2, 3, 1), (16,), x.new_ones(16), x.new_ones(16)
    ),
    "max_pool1d": lambda x: functional.max_pool1d(x.flatten(2), 2),
    "avg_pool1d": lambda x: functional.avg_pool1d(x.flatten(2), 2),
    "max_pool3d": lambda x: functional.max_pool3d(x, 2),
    "avg_pool3d": lambda x: functional.avg_pool3d(x, 2),
    "adaptive_avg_pool1d": lambda x: functional.adaptive_avg_pool1d(x.flatten(2), 9),
    "pad edges": lambda x: functional.pad(x.flatten(2), (2, 2), mode="replicate"),
    "view as windows": lambda x: x.unfold(2, 8, 4).contiguous(),
    "windows": lambda x: (
        x.view(8, 16, 8, 8, 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, 16)
        if x.is_contiguous()
        else x.reshape(8, 16, 8, 8, 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, 16)
    ),
    "pixel_unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: functional.channel_shuffle(x, 4),
    "half": lambda x: x.half(),
    "clone": lambda x: x.clone(),
    "add": lambda x: x + x.contiguous(),
    "scale": lambda x: x * x.new_ones(1, 16, 1, 1),
    "bce": lambda x: functional.binary_cross_entropy_with_logits(x, torch.zeros_like(x)),
    "smooth_l1": lambda x: functional.smooth_l1_loss(x, torch.zeros_like(x)),
    "mse": lambda x: functional.mse_loss(x, torch.zeros_like(x)),
    "var": lambda x: x.var(1),
    "prod": lambda x: x.prod(1),
    "masked": lambda x: x[:, torch.arange(16, device=x.device) > 3],
}


def _seen(layout: str, function: Callable[[Any], Any]) -> Case:
    shape, view = _LAYOUTS[layout]

    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        x = torch.ones(shape, device="cuda", requires_grad=True)
        return (lambda x: function(view(x))), (x,)

    return make


def _then(gradient: str, function: Callable[[Any], Any]) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        x = torch.ones(8, 16, 64, 64, device="cuda", requires_grad=True)
        return (lambda x: _GRADIENTS[gradient](function(x))), (x,)

    return make


STRIDED: dict[str, Case] = {}
for _name, _function in {**OF_IMAGES, **_MORE}.items():
    for _layout in _LAYOUTS:
        STRIDED[f"{_name} ({_layout})"] = _seen(_layout, _function)
    for _gradient in _GRADIENTS:
        STRIDED[f"{_name} ({_gradient})"] = _then(_gradient, _function)
