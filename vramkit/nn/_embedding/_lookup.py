"""Looking up in tables with a fused optimizer, as autograd and torch.compile see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import _disable_current_modes

from vramkit.errors import TableUsageError
from vramkit.nn._embedding._gradients import keep, native_kind
from vramkit.nn._embedding._input import NOTHING
from vramkit.nn._embedding._programs import refuse_programs
from vramkit.nn._embedding._request import Request, insert, read, train_natively
from vramkit.nn._embedding._weights import rows_for_weights, weights_gradient

# Autograd calls backward for its sake; it gets no gradient itself.
with torch.inference_mode(False), _disable_current_modes():
    _ANCHOR = torch.empty(0, device="cpu", requires_grad=True)
    # Autograd keeps the node only for as long as someone holds it.
    _ANCHOR_NODE = torch.autograd.graph.get_gradient_edge(_ANCHOR).node
# Tensors that a training lookup returns besides its output.
_FOUND = 3


def look_up(
    requests: Sequence[Request], weights: Sequence[Tensor | None], *, train: bool
) -> Sequence[Tensor]:
    """Return rows or bags; in training, ids without a row get one, and backward updates rows.

    Args:
        requests: What to look up in which tables, all on one device; their weights are detached.
        weights: For each request, the weights as autograd knows them, or None.
        train: Whether the tables may be changed.

    Raises:
        TableUsageError: ``torch.export`` or ``torch.jit.trace`` records the lookup, or
            ``DistributedDataParallel`` wraps the training of a table.
    """
    refuse_programs()
    if not torch.is_grad_enabled():
        return read(requests)
    with_weights = False
    for of in weights:
        with_weights |= of is not None and of.requires_grad
    if not train and not with_weights:
        return read(requests)
    if torch.compiler.is_compiling():
        outputs: Sequence[Tensor] = _break_graph(requests, weights, train, with_weights)
        return outputs
    return _differentiable(requests, weights, train, with_weights)


def _differentiable(
    requests: Sequence[Request],
    weights: Sequence[Tensor | None],
    train: bool,
    with_weights: bool,
) -> Sequence[Tensor]:
    if train and DistributedDataParallel._active_ddp_module is not None:
        raise TableUsageError(
            "a table with a fused optimizer updates itself, so DistributedDataParallel cannot "
            "average its gradients and the ranks would drift apart; build it with optimizer=None "
            "and sparse=False, or keep the module outside the one that DistributedDataParallel "
            "wraps"
        )
    # Transforms of torch.func say what they do not support of the node in Python only.
    if not with_weights and not torch._C._are_functorch_transforms_active():
        kind = native_kind(requests[0].table)
        if kind is not None:
            return train_natively(kind, requests)
    anchor = _ANCHOR if train else None
    outputs: Sequence[Tensor] = _LookUp.apply(anchor, requests, *weights)  # type: ignore[no-untyped-call]
    return outputs


def check_sparse_gradient(weight: Tensor) -> None:
    """Raise an error for a weight whose sparse gradient would fail in backward.

    Raises:
        TableUsageError: ``DistributedDataParallel`` averages its gradient.
    """
    if torch.compiler.is_compiling():
        return
    wrapper = DistributedDataParallel._active_ddp_module
    if wrapper is None or not (torch.is_grad_enabled() and weight.requires_grad):
        return
    if any(of is weight for of in wrapper._module_parameters):
        raise TableUsageError(
            "DistributedDataParallel takes sparse gradients from nn.Embedding and nn.EmbeddingBag "
            "only; build the module with sparse=False, or put what to_embedding() returns in its "
            "place"
        )


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
        ctx.updates = [of.table.updates for of in requests]
        ctx.weights_dtypes = [None if of is None else of.dtype for of in weights]
        saved: list[Tensor] = []
        if anchor is None:
            outputs = tuple(read(requests))
            found: Sequence[Tensor] = ()
        else:
            answers = insert(requests)
            outputs = tuple(answers[:: _FOUND + 1])
            found = [part for i, part in enumerate(answers) if i % (_FOUND + 1)]
        for i, of in enumerate(requests):
            needs_rows = ctx.needs_input_grad[2 + i]
            saved += (_own(of.ids), _own(of.bounds), _own(of.weights))
            saved += found[_FOUND * i : _FOUND * (i + 1)]
            saved.append(rows_for_weights(of, trained=bool(found)) if needs_rows else NOTHING)
        # Autograd notices where what is saved has been changed in place.
        ctx.save_for_backward(*saved)
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
    width = len(saved) // len(grads)
    # False where a call of torch.autograd.grad wants the gradients of weights only.
    trains = torch._C._will_engine_execute_node(_ANCHOR_NODE)
    # Autograd would run the nodes of single lookups in this order.
    for i in reversed(range(len(grads))):
        grad = grads[i]
        if grad is None:
            continue
        ids, bounds, factors, *found, rows = saved[width * i : width * (i + 1)]
        request = ctx.requests[i]._replace(ids=ids, bounds=bounds, weights=factors)
        dense = grad.contiguous()
        if ctx.needs_input_grad[2 + i]:
            # The table itself changes when this backward pass ends.
            gradient = weights_gradient(dense, request, found, rows, ctx.updates[i])
            weights[i] = gradient.view(factors.shape).to(ctx.weights_dtypes[i])
        if found and trains:
            keep(dense, request, found)
    return None, None, *weights


_update_once = once_differentiable(_update)


def _own(tensor: Tensor) -> Tensor:
    """Return a tensor that can be saved for backward."""
    return tensor.clone() if tensor.is_inference() else tensor
