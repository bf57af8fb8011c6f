"""Ids and offsets as the native operators take them."""

from __future__ import annotations

import torch
from torch import Tensor

from vramkit.errors import ArgumentTypeError, InvalidArgumentError

NOTHING = torch.empty(0, device="cpu")
# Added to a mode's number: the offsets have no last element; there is a bag in each row of the ids.
OPEN, ROWS = 4, 8


def int64_ids(ids: Tensor) -> Tensor:
    """Return ids as contiguous int64.

    Raises:
        ArgumentTypeError: They are neither int64 nor int32.
    """
    if ids.dtype is torch.int64:
        return ids if ids.is_contiguous() else ids.contiguous()
    if ids.dtype is not torch.int32:
        raise ArgumentTypeError(f"ids must be int64 or int32, got {ids.dtype}; call ids.long()")
    return ids.to(torch.int64).contiguous()


def bounds_of(ids: Tensor, offsets: Tensor | None, *, with_last: bool) -> tuple[Tensor, int]:
    """Return where each bag begins, and what to add to the mode's number.

    Raises:
        InvalidArgumentError: ``ids`` is neither 1-D with offsets nor 2-D without.
    """
    if ids.ndim == 2:
        if offsets is not None:
            raise InvalidArgumentError("2-D ids have one bag in each row; leave out offsets")
        return NOTHING, ROWS
    if ids.ndim != 1:
        raise InvalidArgumentError(f"ids must be 1-D or 2-D, got shape {tuple(ids.shape)}")
    if offsets is None or offsets.ndim != 1:
        raise InvalidArgumentError("1-D ids need 1-D offsets, which say where each bag begins")
    if with_last and len(offsets) == 0:
        raise InvalidArgumentError("include_last_offset needs at least one offset")
    return int64_ids(offsets), 0 if with_last else OPEN
