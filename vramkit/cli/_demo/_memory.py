"""Samples of a pool's memory, taken while a step runs."""

import time
from dataclasses import dataclass

from vramkit.pool import MemoryPool


@dataclass(frozen=True)
class Sample:
    """The pool's memory at one moment.

    Attributes:
        step: Number of the step, from 1.
        phase: Of the step: ``"forward"``, ``"backward"`` or ``"optimizer"``.
        seconds: Since the recording began.
        live_bytes: Requested bytes of the live blocks.
        mapped_bytes: Pages with physical memory behind them.
    """

    step: int
    phase: str
    seconds: float
    live_bytes: int
    mapped_bytes: int


class MemoryRecorder:
    """Asks a pool for its memory whenever the training lets it look."""

    def __init__(self, pool: MemoryPool) -> None:
        """Start the clock."""
        self._pool = pool
        self._begin_s = time.perf_counter()
        self._step = 1
        self.samples: list[Sample] = []

    def look(self, phase: str) -> None:
        """Take a sample; the optimizer's is the last of a step."""
        stats = self._pool.stats()
        seconds = time.perf_counter() - self._begin_s
        self.samples.append(
            Sample(self._step, phase, seconds, stats.live_bytes, stats.mapped_bytes)
        )
        self._step += phase == "optimizer"
