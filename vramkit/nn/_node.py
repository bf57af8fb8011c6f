"""The nodes of autograd in C++, from a library that is bound to the installed torch.

``csrc/bind/torch/adapter_node.cpp`` does in C++ what ``_fused.py`` and ``_rectify.py`` do in
Python, which costs the host much more. Where the library is missing, Python's nodes serve, with
the same results.
"""

from __future__ import annotations

import functools
import warnings

import torch

from vramkit._build import BuildError, adapter_path
from vramkit.nn._candidates import Geometry

# What conv_relu_plan returns for kernels that C++ has no code for.
_NO_PLAN = -1


@functools.cache
def has_native_nodes() -> bool:
    """Load the library at the first call, compiling it if need be, and tell whether it is there."""
    try:
        torch.ops.load_library(adapter_path("node"))
    except (BuildError, OSError) as err:
        warnings.warn(
            "vramkit's nodes of autograd in C++ are not available, so those in Python serve: a "
            f"training step costs the host more, with the same results: {err}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def plan_of(at: Geometry, forward: str, grad_input: str, grad_weight: str) -> int | None:
    """Return the number under which C++ knows what computes a convolution.

    Args:
        at: Where the convolution reads.
        forward: What computes the output; None is returned if C++ has no code for it.
        grad_input: What computes the gradient of the input. Where C++ has no code for it, as for
            ``""``, it asks Python each time.
        grad_weight: As ``grad_input``, for the weight.
    """
    if not has_native_nodes():
        return None
    plan: int = torch.ops.vramkit.conv_relu_plan.default(*at, forward, grad_input, grad_weight)
    return None if plan == _NO_PLAN else plan
