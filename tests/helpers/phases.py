"""Steps of an estimate that are single phases of a training, and what each of them allocates."""

from __future__ import annotations

from collections.abc import Callable

from vramkit.estimate._recorder import Trace


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
