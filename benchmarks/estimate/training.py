"""What the measured steps have in common: a loss, its gradients and an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[], Any]
MakeStep = Callable[[], Step]


def training(
    loss_of: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    autocast: torch.dtype | None = None,
    scaled: bool = False,
    clip: float | None = None,
) -> Step:
    """Return one step of training.

    Args:
        loss_of: Computes the loss.
        optimizer: Updates the parameters.
        autocast: The type of autocast around the loss; none without.
        scaled: Whether a gradient scaler is used.
        clip: The largest norm of all gradients together; not clipped without.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    scaler = torch.amp.GradScaler("cuda", enabled=scaled)

    def step() -> None:
        with torch.autocast("cuda", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = loss_of()
        scaler.scale(loss).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def functions(*made: MakeStep) -> dict[str, MakeStep]:
    """Name functions by themselves."""
    return {make.__name__: make for make in made}
