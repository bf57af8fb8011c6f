"""What lookups in evaluation return, for torch.compile: shapes and types without values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import vramkit._ops  # noqa: F401 - loads the library that defines the native operators
from vramkit.nn._embedding._config import ROW_TYPES
from vramkit.nn._embedding._input import OPEN, ROWS
from vramkit.nn._embedding._programs import refuse_programs


def _output(ids: Tensor, bounds: Tensor, mode: int, dtype: torch.dtype, dim: int) -> Tensor:
    # Dynamo of PyTorch 2.11 does not say that torch.export calls it; what follows does.
    refuse_programs()
    if mode % OPEN == 0:
        return ids.new_empty((*ids.shape, dim), dtype=dtype)
    bags = ids.shape[0] if mode & ROWS else bounds.shape[0] - (0 if mode & OPEN else 1)
    return ids.new_empty((bags, dim), dtype=dtype)


def _table_read(
    ids: Tensor,
    bounds: Tensor,
    weights: Tensor,
    table: int,
    mode: int,
    dtype: torch.dtype,
    dim: int,
    max_norm: float,
    norm_type: float,
) -> Tensor:
    del weights, table, max_norm, norm_type
    return _output(ids, bounds, mode, dtype, dim)


def _tables_read(
    parts: Sequence[Tensor], plan: Sequence[int], limits: Sequence[float]
) -> list[Tensor]:
    outputs = []
    for i in range(len(limits) // 2):
        _, mode, dtype, dim = plan[4 * i : 4 * i + 4]
        ids, bounds = parts[3 * i : 3 * i + 2]
        outputs.append(_output(ids, bounds, mode, ROW_TYPES[dtype], dim))
    return outputs


torch.library.register_fake("vramkit::table_read", _table_read)
torch.library.register_fake("vramkit::tables_read", _tables_read)
