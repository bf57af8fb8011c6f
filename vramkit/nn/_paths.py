"""Which kernels serve a call of conv_relu, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from vramkit.nn._exporting import is_exporting
from vramkit.nn._operators import KERNEL_DTYPES, has_kernels
from vramkit.nn._selection import measures

# From this many output elements on, oneDNN's fused convolution was never slower than torch's
# convolution and an in-place ReLU (docs/design/conv.md).
ONEDNN_MIN_ELEMENTS = 1 << 19
# So many times the input's elements must the output have, for the check of the input to pay.
ONEDNN_MIN_GROWTH = 4

# What _select_conv_backend returns; its type has another name in torch's stubs.
_MKLDNN: Any = getattr(torch._C, "_ConvBackend").Mkldnn  # noqa: B009
Sizes = int | Sequence[int]
Save = Literal["output", "mask"]


class Path(Enum):
    """What serves a call; the value is the reason in words."""

    COMPILED = "torch.compile and torch.export get PyTorch's operators, which they can fuse further"
    COMPILED_MASK = "a gradient is needed and save='mask': the compiled graph keeps the mask"
    SUBCLASS = "an argument is a tensor subclass, which defines its own operators"
    TRANSFORMED = "transforms, forward-mode AD, dispatch modes and tracers get PyTorch's operators"
    UNSUPPORTED = "vramkit has no kernels for this device or dtype, so PyTorch's are used"
    MASK = "a gradient is needed and save='mask': one bit an element is kept in place of the output"
    MASK_BIAS = "as MASK, and one pass over the convolution's output adds the bias too"
    CHOSEN = "the fastest kernels for this call, as measured at its first use"
    BIAS = "one pass over the convolution's output adds the bias and rectifies"
    NO_BIAS = "there is no bias that a pass of vramkit's could add"
    TRAINING = "a gradient is needed: on the CPU no fused forward is faster than an in-place ReLU"
    AUTOCAST = "autocast chooses the dtype inside PyTorch's operators"
    SMALL = f"the output has fewer than {ONEDNN_MIN_ELEMENTS} elements, too few for oneDNN to pay"
    BACKEND = "PyTorch does not use oneDNN for this convolution"
    GROWTH = f"the output is less than {ONEDNN_MIN_GROWTH} times as large as the input"
    ONEDNN = "no gradient is needed, and the output is large enough for oneDNN's fused ReLU to pay"


def choose_path(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    save: Save,
) -> Path:
    """Return what serves a call."""
    if torch.compiler.is_compiling():
        return _choose_compiled(x, weight, bias, save)
    if not (is_plain(x) and is_plain(weight) and (bias is None or is_plain(bias))):
        return _choose_subclass(x, weight, bias, save)
    if is_transformed():
        return Path.TRANSFORMED
    gradient = needs_gradient(x, weight, bias)
    if gradient and save == "mask":
        return _choose_mask(x, weight, bias)
    if not x.is_cpu:
        spatial = weight.ndim - 2
        if are_sizes(spatial, stride, padding, dilation) and _can_choose(x, weight, bias, groups):
            return Path.CHOSEN
        return _choose_bias(x, weight, bias)
    if gradient:
        return Path.TRAINING
    return _choose_inference(x, weight, bias, stride, padding, dilation, groups)


def torch_is_best(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell quickly that PyTorch's operators serve a call on the CPU that keeps the output.

    Where the answer is no, they may still do. Small calls must cost no more than two modules.
    """
    if needs_gradient(x, weight, bias):
        return True
    # Compiled and traced code must not depend on sizes.
    if torch.compiler.is_compiling() or is_observed() or x.ndim < 2 or weight.ndim == 0:
        return True
    inputs, outputs = x.shape[1], weight.shape[0]
    few = outputs < ONEDNN_MIN_GROWTH * inputs
    return few or x.numel() * outputs < ONEDNN_MIN_ELEMENTS * inputs


def is_transformed() -> bool:
    """Tell whether something else looks at the operators: transforms, forward-mode AD, tracers."""
    # autograd.Function asks the first two before it applies; no answer has a public name.
    level: int = forward_ad._current_level
    return level >= 0 or torch._C._are_functorch_transforms_active() or is_observed()


def is_observed() -> bool:
    """Tell whether a TorchDispatchMode or torch.jit.trace records the operators.

    Selective checkpointing is such a mode, and allows no change of what it has kept.
    """
    tracing = torch._C._get_tracing_state() is not None
    return tracing or torch._C._len_torch_dispatch_stack() > 0


def are_sizes(spatial: int, *values: object) -> bool:
    """Tell whether arguments are numbers, or tuples of one or of as many as there are dimensions.

    PyTorch also takes others, such as NumPy's integers, and reports the rest.
    """
    return all(
        type(value) is int
        or (
            isinstance(value, tuple | list)
            and len(value) in (1, spatial)
            and all(type(number) is int for number in value)
        )
        for value in values
    )


def needs_gradient(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether autograd records a convolution of these tensors."""
    return torch.is_grad_enabled() and (
        weight.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
    )


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is of no subclass but a parameter."""
    kind = type(tensor)
    return kind is Parameter or kind is Tensor


def _choose_subclass(x: Tensor, weight: Tensor, bias: Tensor | None, save: Save) -> Path:
    """Fakes of a GPU, as estimates of memory make, take what such a GPU would; others decide."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    fakes = all(type(each) is FakeTensor and each.device.type == "cuda" for each in tensors)
    if not fakes or not (x.dtype in KERNEL_DTYPES or torch.is_autocast_enabled("cuda")):
        return Path.SUBCLASS
    fits = _fits(x, weight, bias)
    if save == "mask" and needs_gradient(x, weight, bias):
        return Path.MASK_BIAS if fits else Path.MASK
    return Path.BIAS if fits else Path.SUBCLASS


def _choose_compiled(x: Tensor, weight: Tensor, bias: Tensor | None, save: Save) -> Path:
    wanted = save == "mask" and needs_gradient(x, weight, bias)
    if not wanted or is_exporting() or not has_kernels(x):
        return Path.COMPILED
    return Path.COMPILED_MASK


def _choose_mask(x: Tensor, weight: Tensor, bias: Tensor | None) -> Path:
    if not has_kernels(x):
        return Path.UNSUPPORTED
    # On the CPU, oneDNN adds the bias at no cost, and with fewer roundings.
    return Path.MASK if x.is_cpu or not _fits(x, weight, bias) else Path.MASK_BIAS


def _choose_bias(x: Tensor, weight: Tensor, bias: Tensor | None) -> Path:
    if bias is None:
        return Path.NO_BIAS
    return Path.BIAS if has_kernels(x) and _fits(x, weight, bias) else Path.UNSUPPORTED


def _can_choose(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> bool:
    """Tell whether kernels for a well-formed call on a GPU can be chosen among."""
    return (
        x.is_cuda
        and measures()
        and x.dtype is not torch.float64
        and x.ndim == weight.ndim == 4
        and has_kernels(x)
        and x.shape[1] == weight.shape[1] * groups
        and x.numel() != 0
        and (bias is None or _fits(x, weight, bias))
        and (x.dtype == weight.dtype or torch.is_autocast_enabled("cuda"))
        and weight.device == x.device
    )


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether the bias can be added apart; PyTorch reports what is malformed."""
    return (
        bias is not None
        and x.ndim == weight.ndim
        and bias.shape == weight.shape[:1]
        and bias.device == x.device
        and (bias.dtype == x.dtype or torch.is_autocast_enabled(x.device.type))
    )


def _choose_inference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Path:
    if torch.is_autocast_enabled("cpu"):
        return Path.AUTOCAST
    spatial = weight.ndim - 2
    # What is malformed, also unbatched, goes to torch, whose error texts are the known ones.
    malformed = spatial < 2 or x.ndim != weight.ndim or groups < 1 or x.layout != torch.strided
    mixed = x.dtype != weight.dtype or (bias is not None and x.dtype != bias.dtype)
    if malformed or mixed or not are_sizes(spatial, stride, padding, dilation):
        return Path.BACKEND
    steps = as_tuple(stride, spatial)
    # The padding hardly counts at sizes near the limit.
    shrunk = x.shape[1] * math.prod(steps)
    if x.numel() * weight.shape[0] < ONEDNN_MIN_ELEMENTS * shrunk:
        return Path.SMALL
    if weight.shape[0] < ONEDNN_MIN_GROWTH * shrunk:
        return Path.GROWTH
    assert not isinstance(padding, str)
    backend = torch._C._select_conv_backend(
        *(x, weight, bias, steps, as_tuple(padding, spatial), as_tuple(dilation, spatial)),
        *(False, (0,) * spatial, groups),
    )
    return Path.ONEDNN if backend == _MKLDNN else Path.BACKEND


def as_tuple(sizes: Sizes, length: int) -> tuple[int, ...]:
    """Return one number for each spatial dimension, as torch's convolutions read them."""
    if isinstance(sizes, int):
        return (sizes,) * length
    return tuple(sizes) if len(sizes) == length else (*sizes,) * length
