"""``one_hot``, which compares with all classes for tensor subclasses, and writes ones on a GPU."""

from __future__ import annotations

import torch

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def one_hot(classes: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """Write ones into zeros; how many classes there are is data unless it is given."""
    if num_classes < 1:
        found: torch.Tensor = torch.ops.aten.one_hot.default._op_dk(
            _COMPOSITE, classes, num_classes
        )
        return found
    zeros = classes.new_zeros((*classes.shape, num_classes))
    return zeros.scatter_(-1, classes.unsqueeze(-1), 1)
