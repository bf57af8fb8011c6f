"""Ids and offsets as the native operators take them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vramkit.errors import ArgumentTypeError, InvalidArgumentError


def flat_ids(ids: Tensor) -> Tensor:
    """Return ids as flat int64.

    Raises:
        ArgumentTypeError: They are neither int64 nor int32.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ArgumentTypeError(f"ids must be int64 or int32, got {ids.dtype}; call ids.long()")
    return ids.reshape(-1).to(torch.int64).contiguous()


def bounds_of(ids: Tensor, offsets: Tensor | None, *, with_last: bool) -> Tensor:
    """Return where each bag begins, and after them where the last one ends.

    Raises:
        InvalidArgumentError: ``ids`` is neither 1-D with offsets nor 2-D without, or the offsets
            do not begin at 0 or end beyond the ids.
    """
    if ids.ndim == 2:
        if offsets is not None:
            raise InvalidArgumentError("2-D ids have one bag in each row; leave out offsets")
        width = ids.shape[1]
        return (
            torch.arange(0, (len(ids) + 1) * width, width, device=ids.device)
            if width
            else ids.new_zeros(len(ids) + 1, dtype=torch.int64)
        )
    if ids.ndim != 1:
        raise InvalidArgumentError(f"ids must be 1-D or 2-D, got shape {tuple(ids.shape)}")
    if offsets is None or offsets.ndim != 1:
        raise InvalidArgumentError("1-D ids need 1-D offsets, which say where each bag begins")
    starts = flat_ids(offsets)
    if len(starts) == 0:
        if with_last:
            raise InvalidArgumentError("include_last_offset needs at least one offset")
        return starts.new_zeros(1)
    if not starts.is_cuda:
        _check_ends(starts, len(ids), with_last=with_last)
    return starts if with_last else pad(starts, (0, 1), value=len(ids))


def _check_ends(starts: Tensor, count: int, *, with_last: bool) -> None:
    """On CUDA the kernels check, as the host would have to wait for the device."""
    first, last = int(starts[0]), int(starts[-1])
    if first != 0 or last > count:
        raise InvalidArgumentError(
            f"offsets must begin with 0 and be at most the number of ids, {count}; they go from "
            f"{first} to {last}"
        )
    if with_last and last != count:
        raise InvalidArgumentError(
            f"with include_last_offset, the last offset must be the number of ids, {count}, got "
            f"{last}"
        )
