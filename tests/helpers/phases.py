"""Steps of an estimate that are single phases of a training, and what each of them allocates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vramkit.estimate import Target
from vramkit.estimate._recorder import Trace
from vramkit.estimate._trace import trace

# Makes inputs on the device, and returns a function of them with the inputs.
Case = Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]


def one_a_step(*phases: Callable[[], None]) -> Callable[[], None]:
    """Return a step that runs the first phase when called first, then the next one, and so on."""
    left = iter(phases)

    def step() -> None:
        next(left)()

    return step


def changes_in(found: Trace, step: int) -> list[int]:
    """Return the sizes that a step allocated, and, below zero, those that it freed."""
    ends = [*found.step_starts, len(found.changes)]
    return [
        found.blocks[change].size_bytes if change >= 0 else -found.blocks[~change].size_bytes
        for change in found.changes[ends[step] : ends[step + 1]]
    ]


def trace_call(make: Case, target: Target, *, trained: bool, backward: bool) -> Trace:
    """Trace the forward or the backward pass of a call, in a single step."""

    def make_step() -> Callable[[], Any]:
        function, inputs = make()
        kept: list[Any] = []
        if not backward:

            def forward() -> None:
                with torch.set_grad_enabled(trained):
                    kept.append(function(*inputs))

            return forward
        kept.append(function(*inputs))
        gradient = torch.zeros_like(kept[0])

        def backward_pass() -> tuple[Any, ...]:
            kept.pop().backward(gradient)
            return inputs  # they outlive the step

        return backward_pass

    return trace(make_step, target=target, steps=1)


def changes_inside(found: Trace, step: int = 0) -> list[int]:
    """Return the sizes of a step as above, without the workspaces that cuBLAS keeps."""
    ends = [*found.step_starts, len(found.changes)]
    sizes = []
    for change in found.changes[ends[step] : ends[step + 1]]:
        block = found.blocks[change if change >= 0 else ~change]
        if not block.operator.startswith("cuBLAS"):
            sizes.append(block.size_bytes if change >= 0 else -block.size_bytes)
    return sizes
