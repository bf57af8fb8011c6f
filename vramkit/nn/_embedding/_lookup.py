"""Looking up in tables with a fused optimizer, as autograd and torch.compile see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from vramkit.errors import TableUsageError
from vramkit.nn._embedding._gradients import gradients_of
from vramkit.nn._embedding._request import Request, insert, read

# Autograd calls backward for its sake; it gets no gradient itself.
with torch.inference_mode(False):
    _ANCHOR = torch.empty(0, device="cpu", requires_grad=True)


def look_up(
    requests: Sequence[Request], weights: Sequence[Tensor | None], *, train: bool
) -> Sequence[Tensor]:
    """Return rows or bags; in training, ids without a row get one, and backward updates rows.

    Args:
        requests: What to look up in which tables, all on one device; their weights are detached.
        weights: For each request, the weights as autograd knows them, or None.
        train: Whether the tables may be changed.
    """
    if not torch.is_grad_enabled():
        return read(requests)
    if not train and not any(of is not None and of.requires_grad for of in weights):
        return read(requests)
    if torch.compiler.is_compiling():
        outputs: Sequence[Tensor] = _break_graph(requests, weights, train)
        return outputs
    return _differentiable(requests, weights, train)


def _differentiable(
    requests: Sequence[Request], weights: Sequence[Tensor | None], train: bool
) -> Sequence[Tensor]:
    if train and DistributedDataParallel._active_ddp_module is not None:
        raise TableUsageError(
            "a table with a fused optimizer updates itself, so DistributedDataParallel cannot "
            "average its gradients and the ranks would drift apart; build it with optimizer=None, "
            "or keep the module outside the one that DistributedDataParallel wraps"
        )
    anchor = _ANCHOR if train else None
    outputs: Sequence[Tensor] = _LookUp.apply(anchor, requests, *weights)  # type: ignore[no-untyped-call]
    return outputs


_break_graph = torch.compiler.disable(
    _differentiable,
    recursive=True,
    reason="a lookup in a training table with a fused optimizer changes the table, in forward and "
    "in backward; call eval(), or compile without fullgraph=True",
)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor | None, requests: Sequence[Request], *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.requests = requests
        ctx.weights_dtypes = [None if of is None else of.dtype for of in weights]
        if anchor is None:
            return tuple(read(requests))
        found = insert(requests)
        if len(requests) == 1:
            ctx.save_for_backward(*found[1:])
            return (found[0],)
        outputs = tuple(found[::4])
        ctx.save_for_backward(*(part for i, part in enumerate(found) if i % 4))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # once_differentiable() costs as much as the rest, and only a graph of gradients needs it.
        if torch.is_grad_enabled():
            return _update_once(ctx, *grads)
        return _update(ctx, *grads)


def _update(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Hand gradients to their tables; returns those of the weights of bags."""
    saved = ctx.saved_tensors
    weights: list[Tensor | None] = [None] * len(grads)
    # Autograd would run the nodes of single lookups in this order.
    for i in reversed(range(len(grads))):
        request, grad = ctx.requests[i], grads[i]
        if grad is None:
            continue
        dense, found = grad.contiguous(), saved[3 * i : 3 * i + 3]
        if ctx.needs_input_grad[2 + i]:
            # The table itself changes when this backward pass ends.
            distinct = found[1] if found else request.ids.new_empty(0)
            gradient = request.table.weights_gradient(dense, request, distinct)
            weights[i] = gradient.view(request.weights.shape).to(ctx.weights_dtypes[i])
        if found:
            gradients_of(request.table).add(dense, request, found)
    return None, None, *weights


_update_once = once_differentiable(_update)
