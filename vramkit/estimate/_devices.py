"""Refuses what a GPU would refuse and fake tensors let pass: operators across two devices."""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten


def check_devices(func: Any, args: Any) -> None:
    """Raise torch's error where an operator of another device gets a tensor.

    Raises:
        RuntimeError: The devices differ.
    """
    if func is _aten.convolution.default:
        tensors = [each for each in args[:3] if isinstance(each, torch.Tensor)]
        devices = {each.device.type for each in tensors}
        if len(devices) > 1:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{' and '.join(sorted(devices))}! (input, weight or bias of a convolution)"
            )
    elif func in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
        indices = (each for each in args[1] if isinstance(each, torch.Tensor))
        if args[0].device.type == "cpu" and any(each.device.type != "cpu" for each in indices):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
