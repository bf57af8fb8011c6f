"""A convolution with its ReLU as one node of autograd, served by the fastest kernels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vramkit.nn._candidates import (
    ATEN,
    FORWARD,
    GRAD_INPUT,
    GRAD_WEIGHT,
    PASS,
    Backward,
    Geometry,
    aten_gradients,
    convolve,
    forward_names,
    gradient_names,
    may_have_own_gradients,
)
from vramkit.nn._operators import format_of
from vramkit.nn._selection import Choice, Key, Run, choose, is_capturing

# PyTorch's convolution and a pass over its output take the GPU less than this, and both gradients
# about three times as much: less than the host takes for a step with PyTorch's own nodes.
_SMALL_MS = 0.04

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None]


def fused_conv_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry, *, gradient: bool
) -> Tensor:
    """Return ``relu(conv(x, weight, bias))`` of tensors of one dtype."""
    choice = choose(forward_key(x, weight, bias, at), partial(_forward_runs, x, weight, bias, at))
    if not gradient:
        return FORWARD[choice.name](x, weight, bias, at)
    if waits_for_host(choice):
        return torch.relu_(convolve(x, weight, bias, at))
    output: Tensor = ConvReLUNode.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, at, choice.name
    )
    return output


def waits_for_host(choice: Choice) -> bool:
    """Tell whether a training step gains more from PyTorch's own nodes than from faster kernels.

    Those are in C++; this one costs the host more than such a small call takes the GPU. A CUDA
    graph does not wait for the host.
    """
    ms = choice.times_ms.get(PASS)
    return ms is not None and ms < _SMALL_MS and not is_capturing()


def forward_key(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry) -> Key:
    """Return all that the times of the forward pass depend on."""
    return Key(("forward", bias is None, *_describe(x, weight, at)), tuple(x.shape))


def _describe(x: Tensor, weight: Tensor, at: Geometry) -> tuple[Hashable, ...]:
    flags = torch._C._get_cudnn_benchmark(), torch._C._get_cudnn_allow_tf32()
    weights = (weight.shape, weight.stride())
    where = (x.get_device(), x.data_ptr() % 16)
    return (x.dtype, _order(x), *weights, *where, *flags, *at)


def _order(tensor: Tensor) -> Hashable:
    """Return the memory format of a tensor, or the strides if it has none."""
    return format_of(tensor) or tensor.stride()


def _forward_runs(
    x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry
) -> Mapping[str, Run]:
    names = forward_names(x, weight, at)
    return {name: partial(FORWARD[name], x, weight, bias, at) for name in names}


class ConvReLUNode(torch.autograd.Function):
    """Keeps input, weight and output; the output is what the next operation often keeps too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry, name: str
    ) -> Tensor:
        """Compute the output with the named kernels."""
        output = FORWARD[name](x, weight, bias, at)
        ctx.save_for_backward(x, weight, output)
        ctx.at = at
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        """Compute the gradients, in a way that has gradients itself where they are wanted."""
        x, weight, output = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            dense = torch.ops.aten.threshold_backward.default(grad, output.detach(), 0)
            others = [dim for dim in range(grad.ndim) if dim != 1]
            bias_grad = dense.sum(others) if wanted[2] else None
            found = aten_gradients(dense, x, weight, ctx.at, wanted[:2])
            return *found, bias_grad, None, None
        form = format_of(output)
        assert form is not None
        dense, bias_grad = torch.ops.vramkit.relu_backward.default(
            grad.contiguous(memory_format=form), output, wanted[2]
        )
        found = _gradients(dense, x, weight, ctx.at, wanted[:2])
        return *found, bias_grad if wanted[2] else None, None, None


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, at: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    if not may_have_own_gradients(weight, at):
        return aten_gradients(grad, x, weight, at, wanted)
    arguments = (grad, x, weight, at)
    described = (*_describe(x, weight, at), _order(grad), grad.data_ptr() % 16)
    names = []
    for kind, table, want in (("input", GRAD_INPUT, wanted[0]), ("weight", GRAD_WEIGHT, wanted[1])):
        runs = partial(_backward_runs, table, arguments)
        key = Key((kind, *described), tuple(x.shape))
        names.append(choose(key, runs).name if want else ATEN)
    if names == [ATEN, ATEN]:
        return aten_gradients(*arguments, wanted)
    return (
        GRAD_INPUT[names[0]](*arguments) if wanted[0] else None,
        GRAD_WEIGHT[names[1]](*arguments) if wanted[1] else None,
    )


def _backward_runs(table: Mapping[str, Backward], arguments: Any) -> Mapping[str, Run]:
    return {name: partial(table[name], *arguments) for name in gradient_names(*arguments)}
