"""Calls whose estimate is written from PyTorch's sources, and is to be held against a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers.phases import one_a_step
from torch.nn import functional

# Makes the phases of a call, each of which is a step of its own.
Call = Callable[[], Callable[[], None]]


def ctc_loss(
    steps: int,
    batch: int,
    labels: int,
    length: int,
    *,
    change: Callable[[Any], Any] = lambda targets: targets,
    **options: Any,
) -> Call:
    """Return the phases of a loss: data, loss, gradient, and backward pass."""

    def make_step() -> Callable[[], None]:
        made: dict[str, Any] = {}

        def data() -> None:
            made["x"] = torch.randn(steps, batch, labels, device="cuda").log_softmax(2)
            made["x"].requires_grad_()
            targets = torch.randint(1, labels, (batch, length), device="cuda")
            made["targets"] = change(targets)

        def forward() -> None:
            lengths = torch.full((batch,), steps), torch.full((batch,), length)
            made["loss"] = functional.ctc_loss(made["x"], made["targets"], *lengths, **options)

        def gradient() -> None:
            made["gradient"] = torch.ones_like(made["loss"])

        def backward() -> None:
            made["loss"].backward(made["gradient"])

        return one_a_step(data, forward, gradient, backward)

    return make_step


CALLS: dict[str, tuple[Call, int]] = {
    f"ctc {name}": (call, 4)
    for name, call in {
        "mean": ctc_loss(50, 16, 20, 12),
        "none": ctc_loss(50, 16, 20, 12, reduction="none"),
        "sum, infinite losses": ctc_loss(50, 16, 20, 12, reduction="sum", zero_infinity=True),
        "large": ctc_loss(300, 32, 64, 40, reduction="sum"),
        "large, infinite losses": ctc_loss(300, 32, 64, 40, zero_infinity=True),
        "in a row": ctc_loss(50, 16, 20, 12, change=lambda targets: targets.flatten()),
        "of the host": ctc_loss(50, 16, 20, 12, change=lambda targets: targets.cpu()),
        "int32": ctc_loss(50, 16, 20, 12, change=lambda targets: targets.int()),
        "blank": ctc_loss(50, 16, 20, 12, blank=7),
    }.items()
}
