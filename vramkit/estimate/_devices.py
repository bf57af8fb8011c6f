"""Refuses what a GPU would refuse and fake tensors let pass: operators across two devices."""

from __future__ import annotations

from typing import Any

import torch

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import line_of_caller

_aten = torch.ops.aten
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


def check_devices(func: Any, args: Any) -> None:
    """Refuse an operator that a GPU would refuse, as its tensors are on two devices.

    Raises:
        UntraceableError: The devices differ.
    """
    if func is _aten.convolution.default:
        tensors = [each for each in args[:3] if isinstance(each, torch.Tensor)]
        if len({each.device.type for each in tensors}) > 1:
            devices = ", ".join(each.device.type for each in tensors)
            raise UntraceableError(
                f"{line_of_caller()}: a convolution's tensors are on {devices}, but a GPU needs "
                "all of them on the same device; move them to 'cuda'"
            )
    elif func in _INDEXING and args[0].device.type == "cpu":
        indices = (each for each in args[1] if isinstance(each, torch.Tensor))
        if any(each.device.type != "cpu" for each in indices):
            raise UntraceableError(
                f"{line_of_caller()}: a tensor of the CPU is indexed by one of the GPU; torch "
                "takes indices that are on the CPU or on the same device"
            )
