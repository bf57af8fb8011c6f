"""The kernels that can serve a convolution with ReLU on a GPU, and its gradients.

All compute the same; which is fastest depends on shapes, layout, dtype and device. The first of
each list serves every call and is what is used where nothing may be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vramkit.nn._operators import format_of
from vramkit.nn._own import (
    DEPTHWISE_VARIANTS,
    GROUPED_VARIANTS,
    MOST_GROUP,
    STEM_VARIANTS,
    fits_depthwise,
    fits_grouped,
    fits_stem,
)

_ATEN = torch.ops.aten
_OWN = torch.ops.vramkit


class Geometry(NamedTuple):
    """Where a convolution reads: one number for each spatial dimension, and the groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


Forward = Callable[[Tensor, Tensor, Tensor | None, Geometry], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Geometry], Tensor]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry) -> Tensor:
    """Return PyTorch's convolution."""
    output: Tensor = _ATEN.convolution.default(
        *(x, weight, bias, at.stride, at.padding, at.dilation, False, (0,) * len(at.stride)),
        at.groups,
    )
    return output


def _pass(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry) -> Tensor:
    output = convolve(x, weight, None, at)
    if bias is None:
        return output.relu_()
    if format_of(output) is None:
        output = output.contiguous()
    _OWN.bias_relu_.default(output, bias)
    return output


def _cudnn(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry) -> Tensor:
    output: Tensor = _ATEN.cudnn_convolution_relu.default(
        x, weight, bias, at.stride, at.padding, at.dilation, at.groups
    )
    return output


def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry, *, variant: int
) -> Tensor:
    output: Tensor = _OWN.depthwise_conv_relu.default(
        x, weight, bias, at.stride[0], *at.padding, True, variant
    )
    return output


def _grouped(
    x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry, *, variant: int
) -> Tensor:
    output: Tensor = _OWN.grouped_conv_relu.default(
        x, weight, bias, at.stride[0], *at.padding, True, variant
    )
    return output


def _stem(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry, *, variant: int) -> Tensor:
    output: Tensor = _OWN.stem_conv_relu.default(x, weight, bias, *at.padding, True, variant)
    return output


def aten_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, at: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return PyTorch's gradients of input and weight, which are differentiable themselves."""
    found = _ATEN.convolution_backward.default(
        *(grad, x, weight, None, at.stride, at.padding, at.dilation, False),
        *((0,) * len(at.stride), at.groups, (*wanted, False)),
    )
    return found[0], found[1]


def _aten_input(grad: Tensor, x: Tensor, weight: Tensor, at: Geometry) -> Tensor:
    found = aten_gradients(grad, x, weight, at, (True, False))[0]
    assert found is not None
    return found


def _aten_weight(grad: Tensor, x: Tensor, weight: Tensor, at: Geometry) -> Tensor:
    found = aten_gradients(grad, x, weight, at, (False, True))[1]
    assert found is not None
    return found


def _depthwise_input(
    grad: Tensor, x: Tensor, weight: Tensor, at: Geometry, *, variant: int
) -> Tensor:
    found: Tensor = _OWN.depthwise_grad_input.default(
        grad, weight, *x.shape[2:], at.stride[0], *at.padding, variant
    )
    return found


def _depthwise_weight(
    grad: Tensor, x: Tensor, weight: Tensor, at: Geometry, *, variant: int
) -> Tensor:
    found: Tensor = _OWN.depthwise_grad_weight.default(
        grad, x, weight.shape[2], at.stride[0], *at.padding, variant
    )
    return found


def _grouped_input(
    grad: Tensor, x: Tensor, weight: Tensor, at: Geometry, *, variant: int
) -> Tensor:
    found: Tensor = _OWN.grouped_grad_input.default(
        grad, weight, *x.shape[2:], at.stride[0], *at.padding, variant
    )
    return found


def _grouped_weight(
    grad: Tensor, x: Tensor, weight: Tensor, at: Geometry, *, variant: int
) -> Tensor:
    channels_last = not weight.is_contiguous()
    found: Tensor = _OWN.grouped_grad_weight.default(
        grad, x, weight.shape[1], at.stride[0], *at.padding, channels_last, variant
    )
    return found


PASS = "torch+pass"
ATEN = "torch"
CUDNN = "cudnn"
_DEPTHWISE = tuple(f"depthwise{variant}" for variant in range(DEPTHWISE_VARIANTS))
_GROUPED = tuple(f"grouped{variant}" for variant in range(GROUPED_VARIANTS))
_STEM = tuple(f"stem{variant}" for variant in range(STEM_VARIANTS))

FORWARD: dict[str, Forward] = {
    PASS: _pass,
    CUDNN: _cudnn,
    **{name: partial(_depthwise, variant=v) for v, name in enumerate(_DEPTHWISE)},
    **{name: partial(_grouped, variant=v) for v, name in enumerate(_GROUPED)},
    **{name: partial(_stem, variant=v) for v, name in enumerate(_STEM)},
}
GRAD_INPUT: dict[str, Backward] = {
    ATEN: _aten_input,
    **{name: partial(_depthwise_input, variant=v) for v, name in enumerate(_DEPTHWISE)},
    **{name: partial(_grouped_input, variant=v) for v, name in enumerate(_GROUPED)},
}
GRAD_WEIGHT: dict[str, Backward] = {
    ATEN: _aten_weight,
    **{name: partial(_depthwise_weight, variant=v) for v, name in enumerate(_DEPTHWISE)},
    **{name: partial(_grouped_weight, variant=v) for v, name in enumerate(_GROUPED)},
}


def forward_names(x: Tensor, weight: Tensor, at: Geometry) -> tuple[str, ...]:
    """Return what can compute the output, in the order of preference among equals."""
    cudnn = (CUDNN,) if x.is_cuda and torch.backends.cudnn.enabled else ()
    depthwise = _DEPTHWISE if fits_depthwise(x, weight, *at) else ()
    stem = _STEM if fits_stem(x, weight, *at) else ()
    grouped = _GROUPED if fits_grouped(x, weight, *at) else ()
    return (PASS, *cudnn, *depthwise, *grouped, *stem)


def may_have_own_gradients(weight: Tensor, at: Geometry) -> bool:
    """Tell quickly whether kernels of vramkit's may compute the gradients."""
    channels = weight.shape[1]
    return weight.ndim == 4 and channels <= MOST_GROUP and weight.shape[0] == channels * at.groups


def gradient_names(grad: Tensor, x: Tensor, weight: Tensor, at: Geometry) -> tuple[str, ...]:
    """Return what can compute the gradient of the input, and that of the weight."""
    if not grad.is_contiguous(memory_format=torch.channels_last) or grad.data_ptr() % 16 != 0:
        return (ATEN,)
    depthwise = _DEPTHWISE if fits_depthwise(x, weight, *at) else ()
    grouped = _GROUPED if fits_grouped(x, weight, *at) else ()
    return (ATEN, *depthwise, *grouped)


def describe(name: str, has_bias: bool) -> str:
    """Put the name of what computes an output into words."""
    if name == PASS:
        work = "one vramkit pass for bias and ReLU" if has_bias else "an in-place ReLU"
        return f"PyTorch's convolution, then {work}"
    if name == CUDNN:
        return "cuDNN's convolution with fused bias and ReLU"
    kind = "few-channel" if name in _STEM else name.rstrip("0123456789")
    return f"vramkit's {kind} convolution with bias and ReLU ({name})"
