"""Convolution kernels of vramkit's own: what they take, and their fake kernels."""

from __future__ import annotations

import torch
from torch import Tensor

import vramkit._ops  # noqa: F401 - loads the libraries that define the native operators

# Tiles of pixels and channels that a thread computes; which is fastest depends on the shape.
DEPTHWISE_VARIANTS = 3
DEPTHWISE_WEIGHT_VARIANTS = 2
_DEPTHWISE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fits_depthwise(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> bool:
    """Tell whether the depthwise operators serve a convolution."""
    return (
        x.ndim == 4
        and tuple(weight.shape[:2]) == (groups, 1)
        and groups == x.shape[1]
        and groups % 4 == 0
        and weight.shape[2] == weight.shape[3]
        and weight.shape[2] in (3, 5, 7)
        and stride in ((1, 1), (2, 2))
        and dilation == (1, 1)
        and x.dtype in _DEPTHWISE_DTYPES
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous()
        and x.data_ptr() % 16 == 0
        and all(n + 2 * p >= weight.shape[2] for n, p in zip(x.shape[2:], padding, strict=True))
    )


def _fake_depthwise_conv_relu(
    x: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    stride: int,
    pad_top: int,
    pad_left: int,
    _relu: bool,
    _variant: int,
) -> Tensor:
    kernel = weight.shape[2]
    height = (x.shape[2] + 2 * pad_top - kernel) // stride + 1
    width = (x.shape[3] + 2 * pad_left - kernel) // stride + 1
    return _channels_last(x, (x.shape[0], x.shape[1], height, width))


def _fake_depthwise_grad_input(
    grad: Tensor, _weight: Tensor, height: int, width: int, *_options: int
) -> Tensor:
    return _channels_last(grad, (grad.shape[0], grad.shape[1], height, width))


def _fake_depthwise_grad_weight(grad: Tensor, x: Tensor, kernel: int, *_options: int) -> Tensor:
    return grad.new_empty((x.shape[1], 1, kernel, kernel))


def _channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


torch.library.register_fake("vramkit::depthwise_conv_relu", _fake_depthwise_conv_relu)
torch.library.register_fake("vramkit::depthwise_grad_input", _fake_depthwise_grad_input)
torch.library.register_fake("vramkit::depthwise_grad_weight", _fake_depthwise_grad_weight)
