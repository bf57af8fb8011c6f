"""Pins staging memory with the CUDA driver."""

import warnings

import torch

from vramkit._core import host_register, host_unregister
from vramkit.errors import VramkitError


class Pinning:
    """Registers memory for copies at full speed, and warns once where that is refused.

    Args:
        device: The CUDA device that copies; None is the current one.
    """

    def __init__(self, device: torch.device | None) -> None:
        torch.cuda.init()
        index = None if device is None else device.index
        self._device = torch.cuda.current_device() if index is None else index
        self._warned = False

    def pin(self, address: int, size_bytes: int) -> bool:
        """Pin memory; returns whether it is pinned now."""
        try:
            host_register(address, size_bytes, self._device)
        except VramkitError as err:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"staging memory is not pinned, so copies to the GPU are slower: {err}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return False
        return True

    def unpin(self, address: int) -> None:
        """Undo it; no copy may be under way."""
        host_unregister(address)
