"""Whether ``torch.export`` records what runs, in every version of PyTorch."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Tell whether ``torch.export`` records a program.

    Before 2.13, ``torch.compiler.is_exporting()`` is true in every compiled function.
    """
    return torch.compiler._is_exporting_flag
