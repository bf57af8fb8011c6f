"""A convolution with its ReLU as one node of autograd, served by the fastest kernels.

The node is in C++ where its library is available (``_node.py``); this module's does the same.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vramkit.nn._candidates import (
    ATEN,
    FORWARD,
    GRAD_INPUT,
    GRAD_WEIGHT,
    Backward,
    Geometry,
    aten_gradients,
    forward_names,
    gradient_names,
    may_have_own_gradients,
)
from vramkit.nn._node import has_native_nodes, plan_of
from vramkit.nn._operators import format_of, needs_torch
from vramkit.nn._paths import needs_gradient
from vramkit.nn._selection import Choice, Key, Run, choose, is_settled

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None]
FusedCall = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def fused_conv_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry
) -> tuple[Tensor, FusedCall | None]:
    """Compute ``relu(conv(x, weight, bias))`` of tensors of one dtype.

    Returns:
        The output, and what computes it for all tensors like these; None if the next call may be
        served by something else.
    """
    key = forward_key(x, weight, bias, at)
    choice = choose(key, partial(_forward_runs, x, weight, bias, at))
    call = call_of(choice, weight, at)
    return call(x, weight, bias), call if is_settled(key) else None


def call_of(choice: Choice, weight: Tensor, at: Geometry) -> FusedCall:
    """Return what serves the calls of a choice."""
    names = ("", "") if may_have_own_gradients(weight, at) else (ATEN, ATEN)
    plan = plan_of(at, choice.name, *names)
    return _PythonCall(choice.name, at) if plan is None else _NativeCall(choice.name, at, plan)


def node_of(choice: Choice | None = None, at: Geometry | None = None) -> str:
    """Put into words which node of autograd serves the calls of a choice, or calls in general."""
    if not has_native_nodes():
        return "Python, because the library of those in C++ is not available"
    if choice is None or at is None or plan_of(at, choice.name, "", "") is not None:
        return "C++"
    return f"Python, because C++ has no code for {choice.name}"


class _PythonCall:
    """A convolution with ReLU whose node is Python's."""

    __slots__ = ("at", "name")

    def __init__(self, name: str, at: Geometry) -> None:
        self.name, self.at = name, at

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not needs_gradient(x, weight, bias):
            return FORWARD[self.name](x, weight, bias, self.at)
        output: Tensor = ConvReLUNode.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, self.at, self.name
        )
        return output


class _NativeCall:
    """A convolution with ReLU whose node is in C++.

    What computes the gradients is known after the first backward pass only: until then the node
    asks :func:`_choose_gradients`.
    """

    __slots__ = ("__weakref__", "at", "gradients", "name", "number", "plan")

    def __init__(self, name: str, at: Geometry, plan: int) -> None:
        self.name, self.at, self.plan = name, at, plan
        self.gradients = ["", ""]
        self.number = next(_numbers)
        _calls[self.number] = self

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = _NATIVE.conv_relu.default(x, weight, bias, self.plan, self.number)
        return output

    def settle(self, names: tuple[str, str]) -> None:
        """Take over what computes the gradients, where it is known."""
        self.gradients = [new or old for new, old in zip(names, self.gradients, strict=True)]
        plan = plan_of(self.at, self.name, *self.gradients)
        assert plan is not None
        self.plan = plan


_NATIVE = torch.ops.vramkit
_numbers = itertools.count()
_calls: weakref.WeakValueDictionary[int, _NativeCall] = weakref.WeakValueDictionary()


def forward_key(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry) -> Key:
    """Return all that the times of the forward pass depend on."""
    return Key(("forward", bias is None, *_describe(x, weight, at)), tuple(x.shape))


def _describe(x: Tensor, weight: Tensor, at: Geometry) -> tuple[Hashable, ...]:
    flags = cudnn_flags()
    weights = (weight.shape, weight.stride())
    where = (x.get_device(), x.data_ptr() % 16)
    return (x.dtype, _order(x), *weights, *where, *flags, *at)


def cudnn_flags() -> tuple[bool, bool, bool]:
    """Return the settings of ``torch.backends.cudnn`` that choices depend on."""
    return (
        torch._C._get_cudnn_enabled(),
        torch._C._get_cudnn_benchmark(),
        torch._C._get_cudnn_allow_tf32(),
    )


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
        if needs_torch(grad):
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
    return _compute(_gradient_choices(grad, x, weight, at, wanted)[0], grad, x, weight, at, wanted)


def _gradient_choices(
    grad: Tensor, x: Tensor, weight: Tensor, at: Geometry, wanted: tuple[bool, bool]
) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return what computes the gradients, and of this what is settled, else ``""``."""
    described = (*_describe(x, weight, at), _order(grad), grad.data_ptr() % 16)
    names, settled = [], []
    for kind, table, want in (("input", GRAD_INPUT, wanted[0]), ("weight", GRAD_WEIGHT, wanted[1])):
        key = Key((kind, *described), tuple(x.shape))
        runs = partial(_backward_runs, table, (grad, x, weight, at))
        names.append(choose(key, runs).name if want else ATEN)
        settled.append(names[-1] if want and is_settled(key) else "")
    return (names[0], names[1]), (settled[0], settled[1])


def _compute(
    names: tuple[str, str],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    at: Geometry,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    arguments = (grad, x, weight, at)
    if names == (ATEN, ATEN):
        return aten_gradients(*arguments, wanted)
    return (
        GRAD_INPUT[names[0]](*arguments) if wanted[0] else None,
        GRAD_WEIGHT[names[1]](*arguments) if wanted[1] else None,
    )


def _backward_runs(table: Mapping[str, Backward], arguments: Any) -> Mapping[str, Run]:
    return {name: partial(table[name], *arguments) for name in gradient_names(*arguments)}


def _choose_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    call: int,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute gradients for a node in C++ that does not know yet what does it best."""
    at = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    wanted = (want_input, want_weight)
    names, settled = _gradient_choices(grad, x, weight, at, wanted)
    served = _calls.get(call)
    if served is not None:
        served.settle(settled)
    return _compute(names, grad, x, weight, at, wanted)


_LIBRARY = torch.library.Library("vramkit", "FRAGMENT")
_LIBRARY.define(
    "choose_gradients(Tensor grad, Tensor x, Tensor weight, int[] stride, int[] padding, "
    "int[] dilation, int groups, int call, bool want_input, bool want_weight) -> (Tensor, Tensor)"
)
_LIBRARY.impl("choose_gradients", _choose_gradients, "CompositeExplicitAutograd")
