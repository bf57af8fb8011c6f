"""Ids and offsets as the native operators take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, TableUsageError

# The module may be imported while something traces, or in inference mode.
with torch.inference_mode(False), _disable_current_modes():
    NOTHING = torch.empty(0, dtype=torch.float32, device="cpu")
# Added to a mode's number: the offsets have no last element; there is a bag in each row of the ids.
OPEN, ROWS = 4, 8


def check_tensor(what: str, value: Any) -> None:
    """Raise an error for what is no dense tensor."""
    if not isinstance(value, Tensor):
        if isinstance(value, torch.fx.Proxy):
            raise TableUsageError(
                "torch.fx cannot trace a lookup in a table with a fused optimizer, whose rows are "
                "not in the graph; use a torch.fx.Tracer whose is_leaf_module() is True for it"
            )
        raise ArgumentTypeError(f"{what} must be a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise ArgumentTypeError(f"{what} must be a dense tensor, got {kind}")


def int64_ids(ids: Tensor, what: str = "ids") -> Tensor:
    """Return ids, or other integers, as contiguous int64.

    Raises:
        ArgumentTypeError: They are no dense tensor of int64 or int32.
    """
    check_tensor(what, ids)
    if ids.dtype is torch.int64:
        return ids if ids.is_contiguous() else ids.contiguous()
    if ids.dtype is not torch.int32:
        raise ArgumentTypeError(
            f"{what} must be int64 or int32, got {ids.dtype}; call {what}.long()"
        )
    return ids.to(torch.int64).contiguous()


def bounds_of(ids: Tensor, offsets: Tensor | None, *, with_last: bool) -> tuple[Tensor, int]:
    """Return where each bag begins, and what to add to the mode's number.

    Raises:
        ArgumentTypeError: They are no dense tensors of int64 or int32.
        InvalidArgumentError: ``ids`` is neither 1-D with offsets nor 2-D without, or the offsets
            are on another device or empty.
    """
    check_tensor("ids", ids)
    if ids.ndim == 2:
        if offsets is not None:
            raise InvalidArgumentError("2-D ids have one bag in each row; leave out offsets")
        return NOTHING, ROWS
    if ids.ndim != 1:
        raise InvalidArgumentError(f"ids must be 1-D or 2-D, got shape {tuple(ids.shape)}")
    if offsets is None:
        raise InvalidArgumentError("1-D ids need 1-D offsets, which say where each bag begins")
    bounds = int64_ids(offsets, "offsets")
    if offsets.ndim != 1:
        raise InvalidArgumentError(f"offsets must be 1-D, got shape {tuple(offsets.shape)}")
    if offsets.device != ids.device:
        raise InvalidArgumentError(
            f"the offsets are on {offsets.device}, the ids are on {ids.device}; move one of them"
        )
    if offsets.shape[0] == 0:
        if with_last:
            raise InvalidArgumentError("include_last_offset needs at least one offset")
        if ids.shape[0] != 0:
            raise InvalidArgumentError(
                f"offsets must begin with 0; they are empty, so none of the {ids.shape[0]} ids is "
                "in a bag"
            )
    return bounds, 0 if with_last else OPEN


def matrix_shape(embeddings: Any) -> tuple[int, int]:
    """Return the shape of ``from_pretrained``'s tensor, or raise an error."""
    check_tensor("embeddings", embeddings)
    if embeddings.ndim != 2:
        raise InvalidArgumentError(
            f"embeddings must have two dimensions, got shape {tuple(embeddings.shape)}"
        )
    rows, dim = embeddings.shape
    return rows, dim


def check_module(module: Any, kind: type[nn.Module], own: type[nn.Module]) -> None:
    """Raise an error if ``from_embedding`` has got another module than it takes."""
    if not isinstance(module, (kind, own)):
        raise ArgumentTypeError(
            f"module must be an nn.{kind.__name__}, got {type(module).__name__}; SparseEmbedding "
            "takes an nn.Embedding, SparseEmbeddingBag an nn.EmbeddingBag"
        )
