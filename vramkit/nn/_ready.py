"""Calls on a GPU that need no decision any more: one look-up leads from the call to its kernels.

The first call with some arguments goes through ``_paths.py`` and ``_selection.py``. Its result is
remembered under everything that these ask, read here without their detours: this runs in each call.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vramkit.nn._fused import FusedCall, cudnn_flags
from vramkit.nn._paths import is_plain, is_transformed
from vramkit.nn._selection import READY, measures

if TYPE_CHECKING:
    from vramkit.nn._paths import Sizes

# Inputs of changing sizes must not fill the memory.
_MOST_CALLS = 4096


def ready_call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> FusedCall | None:
    """Return what serves a call that keeps no mask; None if that is to be decided."""
    # Compiled and traced code must not depend on what was called before.
    if torch.compiler.is_compiling() or not READY or not _can_be_ready(x, weight, bias):
        return None
    return READY.get(_key(x, weight, bias, stride, padding, dilation, groups))


def remember(
    call: FusedCall,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> None:
    """Serve later calls with such arguments by ``call``, unless another serves them already.

    The other may know by now what computes its gradients.
    """
    if len(READY) >= _MOST_CALLS:
        READY.clear()
    READY.setdefault(_key(x, weight, bias, stride, padding, dilation, groups), call)


def autocast_dtype() -> torch.dtype | None:
    """Return in which dtype autocast convolves on GPUs; None if it is off."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


def _can_be_ready(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Ask what is no part of the key."""
    return (
        x.is_cuda
        and (is_plain(x) and is_plain(weight) and (bias is None or is_plain(bias)))
        and measures()
        and not is_transformed()
    )


def _key(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Hashable:
    """Return all that a decision depends on.

    Autograd is no part of it: whether it records or not, the same kernels compute the output.
    """
    return (
        *(x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16),
        *(weight.shape, weight.stride(), weight.dtype, weight.device),
        None if bias is None else (bias.shape, bias.dtype, bias.device),
        *(_hashable(stride), _hashable(padding), _hashable(dilation), groups),
        *(cudnn_flags(), autocast_dtype()),
    )


def _hashable(sizes: Sizes | str) -> Hashable:
    return tuple(sizes) if isinstance(sizes, list) else sizes
