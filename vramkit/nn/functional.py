"""Convolution and ReLU in one call."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d

from vramkit.errors import InvalidArgumentError
from vramkit.nn._candidates import Geometry
from vramkit.nn._fused import fused_conv_relu
from vramkit.nn._operators import format_of, masked_relu
from vramkit.nn._paths import (
    Path,
    Save,
    Sizes,
    as_tuple,
    choose_path,
    is_observed,
    needs_gradient,
    torch_is_best,
)
from vramkit.nn._ready import autocast_dtype, ready_call, remember
from vramkit.nn._rectify import bias_relu, relu_keeping_mask

__all__ = ["conv_relu"]

# torch.fx records a call of it; a module that imports the function must say so, too.
torch.fx.wrap("conv_relu")

# By the dimensions of the weight; conv2d reports the ones that no convolution has.
CONVOLUTIONS = {3: conv1d, 4: conv2d, 5: conv3d}


def conv_relu(
    input: Tensor,  # noqa: A002 - the name in torch.nn.functional
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    save: Save = "output",
) -> Tensor:
    """Compute ``relu(conv(input, weight, bias, ...))``, for one, two or three spatial dimensions.

    Arguments, result and errors are those of ``conv1d``, ``conv2d`` or ``conv3d``, whichever fits
    the dimensions of ``weight``, and of ``relu`` in ``torch.nn.functional``.

    Args:
        input: ``(N, C, *spatial)`` or ``(C, *spatial)``, of any dtype and memory format.
        weight: ``(K, C / groups, *kernel)``, of the dtype of ``input``.
        bias: ``(K,)`` or None.
        stride: One number, or one for each dimension.
        padding: As ``stride``, or ``"valid"`` or ``"same"``.
        dilation: As ``stride``.
        groups: Groups of channels.
        save: What is kept for ReLU's gradient: ``"output"``, which the next operation often keeps
            anyway, or ``"mask"``, one bit an element.

    Returns:
        ``(N, K, *output)`` or ``(K, *output)``, of the dtype of ``input``, or of autocast's dtype.

    Raises:
        RuntimeError: As torch's convolution, for shapes and dtypes that do not fit.
        InvalidArgumentError: ``save`` is something else.

    Example:
        >>> from vramkit.nn.functional import conv_relu
        >>> conv_relu(torch.ones(1, 1, 3), torch.tensor([[[1.0, -2.0]], [[1.0, 2.0]]]))
        tensor([[[0., 0.],
                 [3., 3.]]])
    """
    if not _are_tensors(input, weight, bias):
        return _of_torch(input, weight, bias, stride, padding, dilation, groups)
    if save == "output" and input.is_cpu and torch_is_best(input, weight, bias):
        convolution = CONVOLUTIONS.get(weight.ndim, conv2d)
        return _relu(convolution(input, weight, bias, stride, padding, dilation, groups))
    if save == "output" or (save == "mask" and not needs_gradient(input, weight, bias)):
        ready = ready_call(input, weight, bias, stride, padding, dilation, groups)
        if ready is not None:
            return ready(input, weight, bias)
    return _by_path(input, weight, bias, stride, padding, dilation, groups, save)


def _are_tensors(x: object, weight: object, bias: object) -> bool:
    return (
        isinstance(x, Tensor)
        and isinstance(weight, Tensor)
        and (bias is None or isinstance(bias, Tensor))
    )


def _of_torch(x: Any, weight: Any, *arguments: Any) -> Tensor:
    """Let PyTorch say what is wrong with what is no tensor, or ask a class of its own."""
    convolution = CONVOLUTIONS.get(getattr(weight, "ndim", 4), conv2d)
    return torch.relu(convolution(x, weight, *arguments))


def _by_path(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    save: Save,
) -> Tensor:
    check_save(save)
    path = choose_path(x, weight, bias, stride, padding, dilation, groups, save)
    if path is Path.CHOSEN:
        return _choose(x, weight, bias, stride, padding, dilation, groups)
    if path is Path.ONEDNN:
        return _onednn(x, weight, bias, stride, padding, dilation, groups)
    apart = bias if path is Path.BIAS or path is Path.MASK_BIAS else None
    output = CONVOLUTIONS.get(weight.ndim, conv2d)(
        x, weight, bias if apart is None else None, stride, padding, dilation, groups
    )
    return _rectify(output, apart, path)


def _choose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    """Serve a call, and from then on all calls with such arguments alike if that is settled."""
    at = geometry_of(weight, stride, padding, dilation, groups)
    output, call = fused_conv_relu(*as_computed(x, weight, bias), at)
    if call is not None:
        dtype = autocast_dtype()
        serve = call if dtype is None else lambda *tensors: call(*_cast(dtype, *tensors))
        remember(serve, x, weight, bias, stride, padding, dilation, groups)
    return output


def as_computed(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the tensors in the dtype that autocast would convolve them in."""
    dtype = autocast_dtype()
    return (x, weight, bias) if dtype is None else _cast(dtype, x, weight, bias)


def _cast(
    dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def geometry_of(
    weight: Tensor, stride: Sizes, padding: Sizes | str, dilation: Sizes, groups: int
) -> Geometry:
    """Return the arguments with one number for each spatial dimension."""
    assert not isinstance(padding, str)
    spatial = weight.ndim - 2
    return Geometry(
        *(as_tuple(stride, spatial), as_tuple(padding, spatial), as_tuple(dilation, spatial)),
        groups,
    )


def _rectify(output: Tensor, bias: Tensor | None, path: Path) -> Tensor:
    if path is Path.MASK or path is Path.MASK_BIAS:
        return relu_keeping_mask(output, bias)
    if path is Path.COMPILED_MASK:
        channels_last = format_of(output) not in (torch.contiguous_format, None)
        masked: Tensor = masked_relu(output, channels_last)[0]
        return masked
    return _relu(output) if bias is None else bias_relu(output, bias)


def _relu(output: Tensor) -> Tensor:
    """Rectify in place, unless something keeps what the convolution returned."""
    if torch.compiler.is_compiling() or not is_observed():
        return torch.relu_(output)
    return torch.relu(output)


def check_save(save: str) -> None:
    """Raise an error unless ``save`` is ``"output"`` or ``"mask"``."""
    if save not in ("output", "mask"):
        raise InvalidArgumentError(f"save must be 'output' or 'mask', got {save!r}")


def _onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    assert not isinstance(padding, str)
    if not _are_finite(x, weight, bias):
        convolution = CONVOLUTIONS.get(weight.ndim, conv2d)
        return torch.relu_(convolution(x, weight, bias, stride, padding, dilation, groups))
    spatial = weight.ndim - 2
    output: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
        *(x, weight, bias, as_tuple(padding, spatial), as_tuple(stride, spatial)),
        *(as_tuple(dilation, spatial), groups, "relu", [], ""),
    )
    return output


def _are_finite(*tensors: Tensor | None) -> bool:
    """Tell whether there is no NaN, of which oneDNN's ReLU makes zeros, nor what leads to it."""
    return all(tensor is None or math.isfinite(tensor.sum().item()) for tensor in tensors)
