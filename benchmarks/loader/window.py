"""A window of a loader's steady state: the time after every staging slot has been used."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.loader.cpu_time import cpu_seconds

LEAST_WARM_UP_BATCHES = 64
# Slow loaders deliver in bursts of one batch a worker, of which a window needs several.
LEAST_BATCHES = 32


@dataclass(frozen=True)
class Window:
    """How long a loader is warmed up and measured.

    Args:
        warm_up_batches: Batches before the window, unless they take longer than the limit.
        seconds: Length of the window; up to four times as long if few batches come.
    """

    warm_up_batches: int
    seconds: float

    @property
    def warm_up_limit_s(self) -> float:
        """The most seconds that the warm-up takes."""
        return 2 * self.seconds

    @property
    def least_warm_up_s(self) -> float:
        """The seconds that the warm-up takes at least, for loaders of very many batches."""
        return self.seconds / 4

    def is_over(self, batches: int, spent_s: float) -> bool:
        """Tell whether enough was measured."""
        if batches < LEAST_BATCHES:
            return spent_s >= 4 * self.seconds
        return spent_s >= self.seconds


@dataclass(frozen=True)
class Turn:
    """What one contestant did in its window."""

    gigabytes_per_s: float
    batches_per_s: float
    cpu_s_per_gigabyte: float
    batches: int


def warm_up_batches(options: dict[str, Any]) -> int:
    """Return how many batches it takes until all slots were surely used.

    A worker has ``prefetch_factor`` batches under way; twice as many use each slot that any of
    them may get.
    """
    under_way: int = options.get("num_workers", 0) * (options.get("prefetch_factor") or 2)
    return max(LEAST_WARM_UP_BATCHES, 2 * under_way)


def size_of(batch: Any) -> int:
    """Bytes of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.numel() * batch.element_size()
    parts = batch.values() if isinstance(batch, dict) else batch
    return sum(size_of(part) for part in parts)


def wait(*, on_gpu: bool) -> None:
    """Wait for the GPU."""
    if on_gpu:
        torch.cuda.synchronize()


def warm_up(batches: Iterator[Any], window: Window, step: Callable[[], None] | None = None) -> None:
    """Take the batches before the window, each followed by ``step``."""
    begin = time.perf_counter()
    for taken, _ in enumerate(batches, start=1):
        if step is not None:
            step()
        spent = time.perf_counter() - begin
        enough = taken >= window.warm_up_batches and spent >= window.least_warm_up_s
        if enough or spent >= window.warm_up_limit_s:
            return


def measure(batches: Iterator[Any], window: Window, *, on_gpu: bool) -> Turn:
    """Take batches as fast as they are delivered."""
    warm_up(batches, window)
    wait(on_gpu=on_gpu)
    size_bytes = taken = 0
    used_before = cpu_seconds()
    begin = time.perf_counter()
    for batch in batches:
        size_bytes += size_of(batch)
        taken += 1
        if window.is_over(taken, time.perf_counter() - begin):
            break
    wait(on_gpu=on_gpu)
    spent = time.perf_counter() - begin
    used = cpu_seconds() - used_before
    gigabytes = size_bytes / 1e9
    return Turn(gigabytes / spent, taken / spent, used / gigabytes, taken)
