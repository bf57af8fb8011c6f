"""What a model is called with: a sample that cannot be its input is refused before the trace."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from vramkit.errors import ArgumentTypeError


def checked_sample(sample: Any) -> Any:
    """Refuse shapes, NumPy arrays and lists of numbers.

    Args:
        sample: What was given as ``sample_input``.

    Returns:
        The same; a dict for another mapping, such as the batch that a tokenizer returns.

    Raises:
        ArgumentTypeError: It is a shape, holds an array, or lists of numbers in place of tensors.
    """
    sample = dict(sample) if isinstance(sample, Mapping) else sample
    if isinstance(sample, tuple | list) and sample and all(type(each) is int for each in sample):
        shape = ", ".join(map(str, sample))
        raise ArgumentTypeError(
            f"sample_input is a {type(sample).__name__} of integers, ({shape}); if it is the shape "
            f"of the input, pass torch.empty({shape}), as a tuple holds positional arguments"
        )
    leaves = tree_leaves(sample)
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        raise ArgumentTypeError(
            "sample_input holds a NumPy array; pass tensors, such as torch.from_numpy(array)"
        )
    parts = sample.values() if isinstance(sample, dict) else ()
    if any(isinstance(each, list) for each in parts) and all(type(leaf) is int for leaf in leaves):
        raise ArgumentTypeError(
            "sample_input holds lists of numbers and no tensor; pass tensors, as a tokenizer "
            "returns them with return_tensors='pt'"
        )
    return sample


def check_called_without(model: torch.nn.Module) -> None:
    """Refuse to call a model without a sample if its forward needs arguments.

    Args:
        model: The model for which no sample was given.

    Raises:
        ArgumentTypeError: It needs arguments.
    """
    needed = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ArgumentTypeError(
            f"sample_input is missing, and the forward of {type(model).__name__} needs "
            f"{', '.join(needed)}; pass a tensor, a tuple of positional arguments or a dict of "
            "keyword arguments"
        )
