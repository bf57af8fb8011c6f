"""Gradients of products along a dimension, which have a short way where no factor is zero.

``cumprod_backward`` in ``ATen/native/ReduceOps.cpp`` asks the data, except for tensor subclasses,
which fakes are: those take the long way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vramkit.estimate._attribution import line_of_caller


def composites(assume: Callable[[str], None]) -> dict[str, Callable[..., Any]]:
    """Return what the operators do, by their names.

    Args:
        assume: Called with what is assumed of the program.
    """

    def cumprod_backward(
        grad: torch.Tensor, factors: torch.Tensor, dim: int, output: torch.Tensor
    ) -> torch.Tensor:
        if factors.numel() <= 1 or factors.shape[dim] == 1:
            return grad
        assume(
            f"No factor of the cumprod() whose gradient {line_of_caller()} asks for is 0; if one "
            "is, the gradient needs up to twice the memory."
        )
        weighted = output.conj() * grad
        zero = factors == 0
        zero.any()
        # C++ keeps what a line makes until its end.
        flipped = weighted.flip(dim)
        summed = flipped.cumsum(dim)
        found = summed.flip(dim)
        del summed, flipped
        found = found.div(factors.conj())
        del zero, weighted
        return found

    return {"cumprod_backward": cumprod_backward}
