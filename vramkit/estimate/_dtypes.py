"""Refuses what a GPU would refuse and fake tensors let pass: operators of two dtypes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import line_of_caller

_aten = torch.ops.aten
# Places of arguments that must have the same dtype.
_ALIKE: dict[Any, tuple[int, ...]] = {
    **dict.fromkeys((_aten.mm.default, _aten.mv.default), (0, 1)),
    **dict.fromkeys((_aten.addmm.default, _aten.addmv.default), (0, 1, 2)),
    _aten.convolution.default: (0, 1, 2),
    _aten.native_group_norm.default: (0, 1, 2),
    _aten.native_layer_norm.default: (0, 2, 3),
    **dict.fromkeys((_aten.index_put.default, _aten.index_put_.default), (0, 2)),
    **dict.fromkeys((_aten.index_add.default, _aten.index_add_.default), (0, 3)),
    **dict.fromkeys((_aten.index_copy.default, _aten.index_copy_.default), (0, 3)),
}
_OF_CLASSES = (_aten.nll_loss_forward.default, _aten.nll_loss2d_forward.default)
_CLASSES = (torch.int64, torch.uint8)


def check_dtypes(func: Any, args: Any) -> None:
    """Refuse an operator that a GPU would refuse for the dtypes of its tensors.

    Raises:
        UntraceableError: The dtypes differ, or are not among those that it takes.
    """
    places = _ALIKE.get(func)
    if places is not None:
        check_alike(func.name(), (args[place] for place in places if place < len(args)))
    elif func in _OF_CLASSES and args[1].dtype not in _CLASSES:
        raise UntraceableError(
            f"{line_of_caller()}: {func.name()} has labels of {_name(args[1].dtype)}, but a GPU "
            "takes int64; convert them by .long()"
        )


def check_alike(name: str, tensors: Iterable[Any]) -> None:
    """Refuse tensors of different dtypes.

    Args:
        name: The operator.
        tensors: Its tensors; others are passed over.

    Raises:
        UntraceableError: The dtypes differ.
    """
    dtypes = [each.dtype for each in tensors if isinstance(each, torch.Tensor)]
    if len(set(dtypes)) > 1:
        raise UntraceableError(
            f"{line_of_caller()}: {name} has tensors of {', '.join(map(_name, dtypes))}, but a GPU "
            "needs the same dtype of all of them; convert the model or its input, or compute under "
            "torch.autocast"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
