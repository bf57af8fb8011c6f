"""What a lookup asks of a table, and the native operators that answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vramkit.errors import InvalidArgumentError, RowIndexError, TableFullError

if TYPE_CHECKING:
    from vramkit.nn._embedding._table import Table

MODES = {"none": 0, "sum": 1, "mean": 2, "max": 3}

# What the native operators raise.
NATIVE_ERRORS = (IndexError, MemoryError, RuntimeError, ValueError)
# How operators on the stable ABI say that an allocator had no memory for a tensor.
_ALLOCATIONS = ('"aten::empty"', '"aten::new_empty"', "aoti_torch_empty_strided(")


class Request(NamedTuple):
    """A batch of ids: contiguous int64, bounds of bags, float32 weights (empty: there are none).

    ``mode`` is a number of MODES, for bags with what ``bounds_of`` adds to it.
    """

    table: Table
    ids: Tensor
    bounds: Tensor
    weights: Tensor
    mode: int
    max_norm: float
    norm_type: float
    by_frequency: int


# A request, and its weights as autograd knows them.
Asked = tuple[Request, Tensor | None]


def own_error(err: Exception) -> Exception:
    """Return what to raise for a native operator's error: vramkit's, PyTorch's, or that error."""
    if isinstance(err, IndexError):
        return RowIndexError(str(err))
    if isinstance(err, MemoryError):
        return TableFullError(str(err))
    if isinstance(err, ValueError):
        return InvalidArgumentError(str(err))
    if any(name in str(err) for name in _ALLOCATIONS):
        return torch.OutOfMemoryError(
            "out of memory: an embedding table asked for memory, and the device, or the MemoryPool "
            "that is active, has no room for it; use a smaller batch, narrower rows, a budget with "
            "eviction, or placement='host'"
        )
    return err


def read(requests: Sequence[Request]) -> list[Tensor]:
    """Look up without changing a table. The tables are on one device."""
    try:
        if len(requests) == 1:
            arguments = _single(requests[0], requests[0].table.name)
            return [requests[0].table.operators.table_read.default(*arguments)]
        arguments = _joint(requests, [of.table.name for of in requests])
        outputs: list[Tensor] = requests[0].table.operators.tables_read.default(*arguments)
    except NATIVE_ERRORS as err:
        raise own_error(err) from None
    return outputs


def insert(requests: Sequence[Request]) -> Sequence[Tensor]:
    """Look up, giving a row to each id that has none.

    Returns:
        For each request the output, and three tensors that an update needs.
    """
    operators = requests[0].table.operators
    try:
        found: Sequence[Tensor]
        if len(requests) == 1:
            arguments = _single(requests[0], requests[0].table.number)
            found = operators.table_insert.default(*arguments)
        else:
            found = operators.tables_insert.default(*_joint(requests, _numbers(requests)))
    except NATIVE_ERRORS as err:
        raise own_error(err) from None
    return found


def train_natively(kind: int, requests: Sequence[Request]) -> Sequence[Tensor]:
    """Look up as :func:`insert` does; autograd knows the outputs, by a node in C++.

    Args:
        kind: By which C++ knows the operators of the tables.
        requests: What to look up; no weights need gradients.
    """
    controls = [of.table.control for of in requests]
    by_frequency = [of.by_frequency for of in requests]
    try:
        outputs: Sequence[Tensor] = torch.ops.vramkit.train_tables.default(
            kind, *_joint(requests, _numbers(requests)), controls, by_frequency
        )
    except NATIVE_ERRORS as err:
        raise own_error(err) from None
    return outputs


def check_device(ids: Tensor, device: torch.device) -> None:
    """Raise an error if the ids are not where the table is."""
    if ids.device != device:
        raise InvalidArgumentError(
            f"the ids are on {ids.device}, the table is on {device}; move one of them"
        )


def _numbers(requests: Sequence[Request]) -> list[int]:
    return [of.table.number for of in requests]


def _single(of: Request, number: int) -> tuple[Any, ...]:
    config = of.table.config
    return (
        *(of.ids, of.bounds, of.weights, number, of.mode, config.output_dtype),
        *(config.dim, of.max_norm, of.norm_type),
    )


def _joint(
    requests: Sequence[Request], numbers: Sequence[int]
) -> tuple[list[Tensor], list[int], list[float]]:
    parts: list[Tensor] = []
    plan: list[int] = []
    limits: list[float] = []
    for of, number in zip(requests, numbers, strict=True):
        table = of.table
        parts += (of.ids, of.bounds, of.weights)
        plan += (number, of.mode, table.output_type, table.config.dim)
        limits += (of.max_norm, of.norm_type)
    return parts, plan, limits
