"""Programs that would outlive a table: what torch.export and torch.jit.trace record."""

from __future__ import annotations

import torch

from vramkit.errors import TableUsageError
from vramkit.nn._exporting import is_exporting


def refuse_programs() -> None:
    """Raise where a program is recorded.

    Raises:
        TableUsageError: ``torch.export`` or ``torch.jit.trace`` records what runs.
    """
    # Dynamo knows torch.jit's function, and not the one in torch._C that it calls.
    if is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise TableUsageError(
            "torch.export and torch.jit.trace cannot record a lookup in a table with a fused "
            "optimizer: the program would hold a number that stands for the table in this process "
            "and may stand for another one elsewhere; record the module that to_embedding() "
            "returns, export a table with optimizer=None, or look ids up outside of what you record"
        )
