"""Replays events through the real pool core, over addresses without memory behind them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vramkit._core import CorePool, CoreReplay, ReplayOp, Status
from vramkit.errors import CapacityError, InvalidArgumentError
from vramkit.simulate._events import Events

# Called with the number of events done and their total.
Progress = Callable[[int, int], None]

# Sizes reach the core as integers of 64 bits, where larger ones would wrap.
NUMBER_LIMIT = 1 << 63

_CHUNK_EVENTS = 65_536

# What a round reports of the pool's counters.
_ROUND_COUNTERS = ("mapping_calls", "stitched_requests", "stitched_pages", "alias_hits")


@dataclass(frozen=True)
class Failure:
    """Where and why the pool ran out.

    Attributes:
        event: Position of the event in the trace file; -1 for one that the file does not hold.
        replayed_events: Events that completed before it.
        round: Number of the round from 1 under ``repeat_step``, 0 before the first; else None.
    """

    event: int
    replayed_events: int
    requested_bytes: int
    stream: int
    live_bytes: int
    free_bytes: int
    largest_hole_bytes: int
    free_whole_pages: int
    round: int | None


@dataclass(frozen=True)
class RoundCounters:
    """What the pool did in one round of a repeated step."""

    mapping_calls: int
    stitched_requests: int
    stitched_pages: int
    alias_hits: int


@dataclass(frozen=True)
class Replay:
    """The outcome of one replay.

    Attributes:
        seconds: Time in the pool's core, without reading and preparing the trace.
    """

    failure: Failure | None
    events: int
    capacity_bytes: int
    page_bytes: int
    stitched_requests: int
    stitched_pages: int
    cross_stream_waits: int
    alias_hits: int
    mapping_calls: int
    metadata_bytes: int
    seconds: float
    rounds: tuple[RoundCounters, ...]


def replay(
    events: Events,
    *,
    capacity_bytes: int,
    page_bytes: int = 2 << 20,
    round_starts: Sequence[int] = (),
    progress: Progress | None = None,
) -> Replay:
    """Replay events until they end or the pool runs out.

    Args:
        events: What to replay.
        capacity_bytes: The pool's capacity, rounded down to whole pages.
        page_bytes: The pool's page, a power of two.
        round_starts: First events of rounds whose counters are reported one by one.
        progress: Called now and then.

    Raises:
        CapacityError: The capacity is no number of bytes that a machine can have.
        InvalidArgumentError: The pool refuses the capacity or the page.
        NativeLibraryError: The native core is not built.
    """
    check_page(page_bytes)
    check_capacity(capacity_bytes)
    pool = CorePool.create(
        backend="null",
        label="simulate",
        capacity_bytes=capacity_bytes,
        page_bytes=page_bytes,
    )
    run = _Run(pool, events, progress)
    try:
        run.through(round_starts)
        return run.outcome(round_starts)
    finally:
        run.finish()


def check_page(page_bytes: int) -> None:
    """Check the size of a page before it becomes a number of the core's, of 64 bits.

    Raises:
        InvalidArgumentError: It is out of range; the core checks what is within.
    """
    if not 0 < page_bytes < NUMBER_LIMIT:
        raise InvalidArgumentError(
            "page_bytes must be a power of two of at least 65,536, got "
            f"{shown_number(page_bytes)}; the usual page has 2,097,152 bytes (2MiB)"
        )


def check_capacity(capacity_bytes: int) -> None:
    """Check a capacity before it becomes a number of the core's, of 64 bits.

    Raises:
        CapacityError: It is out of range; the core checks what is within.
    """
    if not 0 < capacity_bytes < NUMBER_LIMIT:
        raise CapacityError(
            f"the capacity must be 1 to {NUMBER_LIMIT - 1:,} bytes, got "
            f"{shown_number(capacity_bytes)}; give what a device has, such as 80GiB"
        )


def shown_number(value: int) -> str:
    """The number in decimals, or its size: Python refuses to write thousands of digits."""
    return f"{value:,}" if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"


class _Run:
    def __init__(self, pool: CorePool, events: Events, progress: Progress | None) -> None:
        self._pool = pool
        self._core = CoreReplay(pool, events.block_count)
        self._events = events
        self._progress = progress
        self._done = 0
        self._seconds = 0.0
        self._failed = False
        self._counters: list[dict[str, int]] = []

    def through(self, round_starts: Sequence[int]) -> None:
        """Run everything; remembers the counters at each border of a round."""
        for border in (*round_starts, len(self._events)):
            self._run_to(border)
            self._counters.append(self._pool.stats())
            if self._failed:
                return

    def outcome(self, round_starts: Sequence[int]) -> Replay:
        """What happened."""
        stats = self._counters[-1]
        return Replay(
            failure=self._failure(stats, round_starts) if self._failed else None,
            events=self._done,
            seconds=self._seconds,
            rounds=self._rounds(),
            **{
                name: stats[name]
                for name in (
                    "capacity_bytes",
                    "page_bytes",
                    "stitched_requests",
                    "stitched_pages",
                    "cross_stream_waits",
                    "alias_hits",
                    "mapping_calls",
                    "metadata_bytes",
                )
            },
        )

    def finish(self) -> None:
        """Free what is still live, so that the core can let go of the pool's books."""
        executed = self._events.block_id[: self._done]
        left = np.flatnonzero(np.bincount(executed, minlength=1) == 1)
        self._core.run(
            np.full(len(left), ReplayOp.FREE, dtype=np.uint8),
            left,
            np.zeros(len(left), dtype=np.int64),
            np.zeros(len(left), dtype=np.int32),
        )
        self._core.destroy()
        self._pool.close()

    def _run_to(self, border: int) -> None:
        events = self._events
        while self._done < border and not self._failed:
            chunk = slice(self._done, min(self._done + _CHUNK_EVENTS, border))
            begin = time.perf_counter()
            done, status = self._core.run(
                events.op[chunk],
                events.block_id[chunk],
                events.size_bytes[chunk],
                events.stream[chunk],
            )
            self._seconds += time.perf_counter() - begin
            self._done += done
            self._failed = status is Status.OUT_OF_MEMORY
            if self._progress:
                self._progress(self._done, len(events))

    def _failure(self, stats: dict[str, int], round_starts: Sequence[int]) -> Failure:
        at = self._done
        rounds_begun = sum(start <= at for start in round_starts)
        return Failure(
            event=int(self._events.index[at]),
            replayed_events=at,
            requested_bytes=int(self._events.size_bytes[at]),
            stream=int(self._events.stream[at]),
            live_bytes=stats["live_bytes"],
            free_bytes=stats["free_bytes"],
            largest_hole_bytes=stats["largest_free_bytes"],
            free_whole_pages=stats["largest_stitch_bytes"] // stats["page_bytes"],
            round=rounds_begun if round_starts else None,
        )

    def _rounds(self) -> tuple[RoundCounters, ...]:
        return tuple(
            RoundCounters(**{name: after[name] - before[name] for name in _ROUND_COUNTERS})
            for before, after in zip(self._counters, self._counters[1:], strict=False)
        )
