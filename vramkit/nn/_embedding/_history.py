"""Where the state of a table comes from, so that no dump is applied to another state."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

import torch
from torch import Tensor

from vramkit.errors import InvalidArgumentError


class History:
    """The lines of training that led to a table's state, each with the clock at its end.

    Each table begins a line of its own with a random number. A table that takes over a state takes
    over its lines, and continues with its own when it is trained. So a line and a clock on it stand
    for one state, in whatever process: a forked child begins a line of its own, too.
    """

    def __init__(self) -> None:
        self._before: list[list[int]] = []
        self._begin()

    def _begin(self) -> None:
        # torch's generator is the user's.
        self._own = secrets.randbits(63)
        self._process = os.getpid()
        # The last clock on the own line that somebody has asked for; -1 if nobody has.
        self._named = -1

    def follow(self, history: Tensor | None) -> None:
        """Continue from a state; it has no history if an earlier version saved it."""
        self._before = [] if history is None else history.tolist()

    def at(self, clock: int) -> Tensor:
        """Return the lines until a clock, int64 of shape ``(lines, 2)``: number, clock."""
        if self._process != os.getpid():
            # Of its parent's line, the child had the states until the fork, and that is named.
            if self._named >= 0:
                self._before = [*self._before, [self._own, self._named]]
            self._begin()
        lines = self._before
        if not lines or lines[-1][1] != clock:
            lines = [*lines, [self._own, clock]]
            self._named = max(self._named, clock)
        return torch.tensor(lines, dtype=torch.int64, device="cpu")


def check_follows(changes: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise an error if a dump is not of a table that once had this state.

    Raises:
        InvalidArgumentError: It is of another table, or the state has changed otherwise.
    """
    line, clock = state["history"][-1].tolist()
    past = changes["history"].tolist() if "history" in changes else []
    if not any(line == own and clock <= end for own, end in past):
        raise InvalidArgumentError(
            f"the dump has changes since {int(changes['since'])} only, and its table never had the "
            f"state that this one has at {clock}: it is another table, or one of them has been "
            "trained, reset or loaded otherwise since the last dump; apply the dumps in their "
            "order, from the first, which changes() without since returns"
        )
