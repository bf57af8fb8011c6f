"""Looking up in a table with a fused optimizer, as autograd sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from vramkit.errors import TableUsageError
from vramkit.nn._embedding._table import Request, Table


def look_up(table: Table, request: Request, weights: Tensor | None, *, train: bool) -> Tensor:
    """Return rows or bags; in training, ids without a row get one, and backward updates rows.

    Args:
        table: The table.
        request: What to look up; its weights are detached.
        weights: The weights as autograd knows them, or None.
        train: Whether the table may be changed.
    """
    if not torch.is_grad_enabled():
        return table.read(request)
    wants_weights = weights is not None and weights.requires_grad
    if not train and not wants_weights:
        return table.read(request)
    if train:
        _refuse_ddp()
    anchor = torch.empty(0, device="cpu", requires_grad=train)
    output: Tensor = _LookUp.apply(anchor, weights, table, request, train)  # type: ignore[no-untyped-call]
    return output


def _refuse_ddp() -> None:
    if DistributedDataParallel._active_ddp_module is not None:
        raise TableUsageError(
            "a table with a fused optimizer updates itself, so DistributedDataParallel cannot "
            "average its gradients and the ranks would drift apart; build it with optimizer=None, "
            "or keep the module outside the one that DistributedDataParallel wraps"
        )


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _anchor: Tensor,
        weights: Tensor | None,
        table: Table,
        request: Request,
        train: bool,
    ) -> Tensor:
        ctx.table, ctx.request = table, request
        if train:
            output, *found = table.insert(request)
        else:
            output, found = table.read(request), [request.ids.new_empty(0)] * 3
        ctx.save_for_backward(*found)
        ctx.weights_dtype = None if weights is None else weights.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dense, found = grad.contiguous(), ctx.saved_tensors
        weights = None
        if ctx.needs_input_grad[1]:
            # The table itself changes when this backward pass ends.
            weights = ctx.table.weights_gradient(dense, ctx.request, found[1])
            weights = weights.to(ctx.weights_dtype)
        if ctx.needs_input_grad[0]:
            ctx.table.add_gradient(dense, ctx.request, found)
        return None, weights, None, None, None
