"""Calls whose blocks a GPU's allocator has recorded, beside what is estimated for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from helpers.phases import Case, changes_inside, one_a_step

from vramkit.estimate import Target
from vramkit.estimate._trace import trace

# Sizes that a call and its backward pass took, and, below zero, gave back.
Recorded = Mapping[str, list[int]]
CASES_A_TRACE = 40


def estimated(
    cases: Mapping[str, Case], recorded: Mapping[str, Recorded], target: Target
) -> Iterator[tuple[str, str, list[int]]]:
    """Trace calls in one process; yields their names, "fwd" or "bwd", and what each allocates.

    Args:
        cases: What is called.
        recorded: What was recorded of each; says whether there is a backward pass.
        target: The GPU.
    """
    phases = {name: _phases(case, recorded[name]) for name, case in cases.items()}
    every = [phase for parts in phases.values() for phase in parts]
    found = trace(lambda: one_a_step(*every), target=target, steps=len(every))
    assert found.unknown == ()
    place = 0
    for name, parts in phases.items():
        for way, step in (("fwd", place + 1), ("bwd", place + 3)):
            if way in recorded[name]:
                yield name, way, changes_inside(found, step)
        place += len(parts)


def _phases(case: Case, recorded: Recorded) -> list[Callable[[], None]]:
    """Inputs, the call, its gradient, and the backward pass, each of them a step."""
    made: dict[str, Any] = {}

    def inputs() -> None:
        made["function"], made["inputs"] = case()

    def call() -> None:
        made["result"] = made["function"](*made["inputs"])

    def gradient() -> None:
        made["gradient"] = torch.zeros_like(made["result"])

    def backward() -> None:
        made.pop("result").backward(made["gradient"])

    def end() -> None:
        made.clear()

    if "bwd" not in recorded:
        return [inputs, call, end]
    return [inputs, call, gradient, backward, end]
