"""Convolution kernels of vramkit's own: what they take, and their fake kernels."""

from __future__ import annotations

import torch
from torch import Tensor

import vramkit._ops  # noqa: F401 - loads the libraries that define the native operators

# Blocks of 16 or of 32 channels; which is faster depends on the shape.
DEPTHWISE_VARIANTS = 2
# Rows of a tile that a warp of the stem takes.
STEM_VARIANTS = 2
# Shapes of a grouped window: channels and rows.
GROUPED_VARIANTS = 3
_STEM_OUTPUTS = 96
# Channels of a group, at most.
MOST_GROUP = 32
_GROUPED_CHANNELS = (1, 2, 4, 8, 16, MOST_GROUP)
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
        and groups % 8 == 0
        and weight.shape[2] == weight.shape[3]
        and weight.shape[2] in (3, 5, 7)
        and stride in ((1, 1), (2, 2))
        and dilation == (1, 1)
        and x.dtype in _DEPTHWISE_DTYPES
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous()
        and x.data_ptr() % 16 == 0
        and _has_output(x, weight, padding)
    )


def fits_stem(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> bool:
    """Tell whether the operator for stems serves a convolution.

    It writes channels-last, so torch's result must be so too.
    """
    return (
        x.ndim == 4
        and groups == 1
        and x.shape[1] in (3, 4)
        and tuple(weight.shape[2:]) in ((3, 3), (7, 7))
        and weight.shape[0] % 8 == 0
        and weight.shape[0] <= _STEM_OUTPUTS
        and stride == (2, 2)
        and dilation == (1, 1)
        and x.dtype in (torch.float16, torch.bfloat16)
        and _is_channels_last(x, weight)
        and _has_output(x, weight, padding)
    )


def fits_grouped(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> bool:
    """Tell whether the operators for groups of up to 32 channels serve a convolution."""
    return (
        x.ndim == 4
        and tuple(weight.shape) == (x.shape[1], x.shape[1] // groups, 3, 3)
        and weight.shape[1] in _GROUPED_CHANNELS
        and x.shape[1] % 8 == 0
        and stride in ((1, 1), (2, 2))
        and dilation == (1, 1)
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last)
        and (weight.is_contiguous() or _is_channels_last(weight))
        and x.data_ptr() % 16 == 0
        and _has_output(x, weight, padding)
    )


def _has_output(x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> bool:
    """Tell whether the padded input is as large as the kernel, which is square."""
    return all(n + 2 * p >= weight.shape[2] for n, p in zip(x.shape[2:], padding, strict=True))


def _is_channels_last(*tensors: Tensor) -> bool:
    return any(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def _fake_conv_relu(
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


def _fake_grad_input(
    grad: Tensor, _weight: Tensor, height: int, width: int, *_options: int
) -> Tensor:
    return _channels_last(grad, (grad.shape[0], grad.shape[1], height, width))


def _fake_depthwise_grad_weight(grad: Tensor, x: Tensor, kernel: int, *_options: int) -> Tensor:
    return grad.new_empty((x.shape[1], 1, kernel, kernel))


def _fake_stem_conv_relu(
    x: Tensor, weight: Tensor, _bias: Tensor | None, pad_top: int, pad_left: int, *_options: int
) -> Tensor:
    kernel = weight.shape[2]
    sizes = (
        (n + 2 * p - kernel) // 2 + 1 for n, p in zip(x.shape[2:], (pad_top, pad_left), strict=True)
    )
    return _channels_last(x, (x.shape[0], weight.shape[0], *sizes))


def _fake_grouped_grad_weight(
    grad: Tensor,
    x: Tensor,
    group: int,
    _stride: int,
    _pad_top: int,
    _pad_left: int,
    channels_last: bool,
    _variant: int,
) -> Tensor:
    shape = (x.shape[1], group, 3, 3)
    return _channels_last(grad, shape) if channels_last else grad.new_empty(shape)


def _channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


torch.library.register_fake("vramkit::depthwise_conv_relu", _fake_conv_relu)
torch.library.register_fake("vramkit::depthwise_grad_input", _fake_grad_input)
torch.library.register_fake("vramkit::depthwise_grad_weight", _fake_depthwise_grad_weight)
torch.library.register_fake("vramkit::stem_conv_relu", _fake_stem_conv_relu)
torch.library.register_fake("vramkit::grouped_conv_relu", _fake_conv_relu)
torch.library.register_fake("vramkit::grouped_grad_input", _fake_grad_input)
torch.library.register_fake("vramkit::grouped_grad_weight", _fake_grouped_grad_weight)
