"""ReLU of a convolution's output, in place, as autograd sees it.

The convolution stays PyTorch's, with its own gradients. Only this pass is a node of its own: in
C++, or where its library is missing, in Python for a single native call each way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vramkit.nn._node import has_native_nodes
from vramkit.nn._operators import format_of, masked_gradient, needs_torch

Gradients = tuple[Tensor | None, Tensor | None]


def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """Return ``relu(x + bias)``; it overwrites ``x`` and is kept for the gradient.

    Args:
        x: ``(N, C, ...)`` that nothing else uses.
        bias: ``(C,)``.
    """
    return _rectify(_BiasReLU, _dense(x), _cast(bias, x))


def relu_keeping_mask(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``relu(x + bias)``; it overwrites ``x``, and only a mask is kept for the gradient.

    Args:
        x: ``(N, C, ...)`` that nothing else uses.
        bias: ``(C,)``, or None for ``relu(x)``.
    """
    return _rectify(_MaskedReLU, _dense(x), None if bias is None else _cast(bias, x))


def _rectify(node: type[torch.autograd.Function], x: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a node: that of the same kind in C++ where that is available."""
    output: Tensor
    if has_native_nodes():
        output = torch.ops.vramkit.rectify_.default(x, bias, node is _MaskedReLU)
    else:
        output = node.apply(x, bias)
    return output


def _dense(x: Tensor) -> Tensor:
    return x if format_of(x) is not None else x.contiguous()


def _cast(bias: Tensor, x: Tensor) -> Tensor:
    # The dtypes differ under autocast only.
    return bias if bias.dtype == x.dtype else bias.to(x.dtype)


class _BiasReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        torch.ops.vramkit.bias_relu_.default(x, bias)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.format = format_of(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (output,) = ctx.saved_tensors
        if needs_torch(grad):
            result = torch.ops.aten.threshold_backward.default(grad, output.detach(), 0)
            return result, _bias_gradient(ctx, result)
        dense = grad.contiguous(memory_format=ctx.format)
        wanted = ctx.needs_input_grad[1]
        result, bias = torch.ops.vramkit.relu_backward.default(dense, output, wanted)
        return result, bias if wanted else None


class _MaskedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(torch.ops.vramkit.relu_mask_.default(x, bias))
        ctx.format = format_of(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (mask,) = ctx.saved_tensors
        return masked_gradient(grad, mask, ctx.format, ctx.needs_input_grad[1])


def _bias_gradient(ctx: Any, grad: Tensor) -> Tensor | None:
    others = [dim for dim in range(grad.ndim) if dim != 1]
    return grad.sum(others) if ctx.needs_input_grad[1] else None
