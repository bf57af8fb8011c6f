"""Gradients of the weights of bags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vramkit.errors import TableUsageError
from vramkit.nn._embedding._input import NOTHING, ROWS
from vramkit.nn._embedding._request import MODES, Request, read


def rows_for_weights(request: Request, *, trained: bool) -> Tensor:
    """Return the row of each position where the table may not have it in backward, or nothing.

    A table may evict rows meanwhile. It keeps no rows that are scaled to ``max_norm``, except in
    training.
    """
    if not request.table.config.evicts and (trained or request.max_norm == 0):
        return NOTHING
    norm = 0.0 if trained else request.max_norm
    flat = request.ids.reshape(-1)
    plain = request._replace(ids=flat, bounds=NOTHING, weights=NOTHING, mode=MODES["none"])
    return read([plain._replace(max_norm=norm)])[0]


def weights_gradient(
    grad: Tensor, request: Request, found: Sequence[Tensor], rows: Tensor, updates: int
) -> Tensor:
    """Return the gradient of each weight of a batch in bags, float32.

    Args:
        grad: Of the output, ``(bags, dim)``, contiguous.
        request: The lookup.
        found: What the training lookup found; empty in evaluation.
        rows: What :func:`rows_for_weights` returned in forward.
        updates: The updates of the table until forward.
    """
    if rows.ndim == 2:
        return _from_rows(grad, request, rows)
    if updates != request.table.updates:
        raise TableUsageError(
            "the rows that the gradient of per_sample_weights needs have been updated since "
            "forward; run its backward before the next update"
        )
    distinct = found[1] if found else request.ids.new_empty(0)
    return request.table.weights_gradient(grad, request, distinct)


def _from_rows(grad: Tensor, request: Request, rows: Tensor) -> Tensor:
    positions = torch.arange(len(rows), device=rows.device)
    if request.mode & ROWS:
        bags = positions // max(1, request.ids.shape[1])
    else:
        bags = torch.searchsorted(request.bounds, positions, right=True) - 1
    products = (rows.float() * grad.float()[bags]).sum(1)
    padding = request.table.config.padding
    return products if padding is None else products * (request.ids.reshape(-1) != padding)
