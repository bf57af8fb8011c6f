"""One simulation: a trace, the options, and a report."""

from dataclasses import dataclass
from pathlib import Path

from vramkit.errors import InvalidArgumentError
from vramkit.pool._capacity import checked_page_bytes
from vramkit.simulate._capacity import (
    DEFAULT_CAPACITY,
    check_capacity,
    find_min_capacity,
    parse_capacity,
)
from vramkit.simulate._events import Events
from vramkit.simulate._load import load_trace
from vramkit.simulate._repeat import Repetition, repeat_step
from vramkit.simulate._replay import Progress, Replay, replay
from vramkit.simulate._steps import find_heaviest_step


@dataclass(frozen=True)
class Options:
    """How to replay a trace.

    Attributes:
        capacity: Bytes (``"12GiB"``) or a multiple of the trace's peak (``"1.01x"``, which is
            also taken for ``None``), rounded down to whole pages.
        min_capacity: Look for the smallest capacity that completes, and replay with that.
        page_bytes: The pool's page, a power of two.
        repeat_step: Replay up to the heaviest step, and that step so many times.
        device: Which device's events to take from a snapshot of several.
    """

    capacity: str | None = None
    min_capacity: bool = False
    page_bytes: int = 2 << 20
    repeat_step: int | None = None
    device: int | None = None


@dataclass(frozen=True)
class Simulation:
    """The outcome of a simulation.

    Attributes:
        peak_live_bytes: Most requested bytes live at once in the replayed events.
        standing_blocks: Blocks that were live before the recording began; they are placed first.
        repetition: What was repeated, or ``None``.
        notes: What is doubtful about the recording, in sentences for people.
        private_blocks: Blocks of private pools (CUDA graphs, ``torch.cuda.MemPool``). They are
            not replayed: a vramkit pool does not serve them.
        private_peak_bytes: Most requested bytes of such blocks live at once.
    """

    peak_live_bytes: int
    standing_blocks: int
    replay: Replay
    repetition: Repetition | None
    notes: tuple[str, ...] = ()
    private_blocks: int = 0
    private_peak_bytes: int = 0

    @property
    def completed(self) -> bool:
        """Whether every event was replayed."""
        return self.replay.failure is None

    @property
    def ratio(self) -> float:
        """Capacity over peak live bytes."""
        return self.replay.capacity_bytes / self.peak_live_bytes


def simulate(
    path: str | Path, options: Options | None = None, *, progress: Progress | None = None
) -> Simulation:
    """Replay a recorded trace through the pool.

    Args:
        path: An ``.npz`` trace or a PyTorch memory snapshot.
        options: How to replay.
        progress: Called now and then with the events done and their total.

    Raises:
        TraceError: The trace cannot be used.
        InvalidArgumentError: An option cannot be used.
        NativeLibraryError: The native core is not built.

    >>> import tempfile, numpy as np
    >>> columns = {"addr": [64, 96, 64], "size": [6 << 20, 3 << 20, 6 << 20], "stream": [0, 0, 0]}
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     np.savez(file, action=[0, 0, 2], actions=["alloc", "free_requested", "free_completed"],
    ...              **columns)
    ...     outcome = simulate(file.name, Options(capacity="12MiB"))
    >>> outcome.completed, outcome.peak_live_bytes >> 20
    (True, 9)
    """
    options = options or Options()
    _check(options)
    trace = load_trace(path, device=options.device)
    repetition = None
    if options.repeat_step is not None:
        repetition = repeat_step(trace, find_heaviest_step(trace), rounds=options.repeat_step)
    events = repetition.events if repetition else trace
    capacity_bytes = _capacity_bytes(events, options, progress)
    return Simulation(
        peak_live_bytes=events.peak_live_bytes,
        standing_blocks=trace.standing_blocks,
        replay=replay(
            events,
            capacity_bytes=capacity_bytes,
            page_bytes=options.page_bytes,
            round_starts=repetition.round_starts if repetition else (),
            progress=progress,
        ),
        repetition=repetition,
        notes=trace.notes,
        private_blocks=trace.private_blocks,
        private_peak_bytes=trace.private_peak_bytes,
    )


def _check(options: Options) -> None:
    if options.capacity is not None and options.min_capacity:
        raise InvalidArgumentError("a capacity and the search for the smallest exclude each other")
    page_bytes = checked_page_bytes(options.page_bytes)
    if options.capacity is not None:
        check_capacity(options.capacity, page_bytes=page_bytes)
    if options.repeat_step is not None and options.repeat_step < 1:
        raise InvalidArgumentError(
            f"the step must be repeated at least once, not {options.repeat_step:,} times"
        )


def _capacity_bytes(events: Events, options: Options, progress: Progress | None) -> int:
    if not options.min_capacity:
        return parse_capacity(
            options.capacity or DEFAULT_CAPACITY,
            peak_live_bytes=events.peak_live_bytes,
            page_bytes=options.page_bytes,
        )

    def completes(capacity_bytes: int) -> bool:
        outcome = replay(
            events,
            capacity_bytes=capacity_bytes,
            page_bytes=options.page_bytes,
            progress=progress,
        )
        return outcome.failure is None

    return find_min_capacity(events, page_bytes=options.page_bytes, completes=completes)
