"""Makes replayable events of a recorded history, and says where the history is not complete."""

from dataclasses import dataclass, replace

import numpy as np

from vramkit.errors import TraceError
from vramkit.simulate._events import Action, Events, RecordedEvents, normalise
from vramkit.simulate._segments import Picture
from vramkit.units import format_mib

# Recordings without block sizes as requested differ by the rounding of sizes.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class History:
    """What a trace file says about one device.

    Attributes:
        events: The events outside private pools.
        private: Those of private pools: of CUDA graphs and ``torch.cuda.MemPool``.
        picture: The file's own picture of the memory at the end, where it has one.
        most_reserved_bytes: Most bytes that segments outside private pools had at once, by that
            picture and the events of segments.
        overflowed: Whether the oldest events were overwritten while it was recorded.
    """

    events: RecordedEvents
    private: RecordedEvents | None = None
    picture: Picture | None = None
    most_reserved_bytes: int = 0
    overflowed: bool = False


def to_events(history: History) -> Events:
    """Pair the events, and note what makes their peak doubtful.

    Raises:
        TraceError: The events contradict each other.
    """
    notes = []
    recorded, private = history.events, history.private
    if _lacks_completions(recorded, private):
        recorded = _with_requests_as_completions(recorded)
        private = private and _with_requests_as_completions(private)
        notes.append(
            "the history holds no 'free_completed' event: each block is taken for free as soon as "
            "its free was requested, which is too early where other streams used it; record "
            "without skip_actions=['free_completed']"
        )
    events = normalise(recorded)
    if history.overflowed:
        notes.append(
            "the history overflowed while it was recorded, and its oldest events were overwritten: "
            f"the peak of what is left, {format_mib(events.peak_live_bytes)}, may not be the "
            "highest; record with a larger max_entries, or fewer steps"
        )
    notes += _disagreements(events, history)
    blocks, peak_bytes, more = _count_private(private)
    return replace(
        events,
        notes=(*notes, *more),
        private_blocks=blocks,
        private_peak_bytes=peak_bytes,
    )


def _lacks_completions(*parts: RecordedEvents | None) -> bool:
    actions = np.concatenate([part.action for part in parts if part is not None])
    return bool((actions == Action.FREE_REQUESTED).any()) and not bool(
        (actions == Action.FREE_COMPLETED).any()
    )


def _with_requests_as_completions(recorded: RecordedEvents) -> RecordedEvents:
    is_request = recorded.action == Action.FREE_REQUESTED
    action = np.where(is_request, Action.FREE_COMPLETED, recorded.action).astype(np.uint8)
    return replace(recorded, action=action)


def _disagreements(events: Events, history: History) -> list[str]:
    if history.picture is None or not len(events):
        return []
    peak_bytes, end_bytes = events.peak_live_bytes, int(events.live_bytes[-1])
    tolerance_bytes = _TOLERANCE * peak_bytes
    advice = "events are missing; record all actions, from the start of the loop"
    live_bytes, reserved_bytes = history.picture.live_bytes, history.most_reserved_bytes
    if abs(end_bytes - live_bytes) > tolerance_bytes:
        held = f"the events leave {format_mib(end_bytes)} live, but the snapshot's segments hold "
        doubt = f"{format_mib(live_bytes)}, so the peak of {format_mib(peak_bytes)} is doubtful: "
        return [held + doubt + advice]
    if peak_bytes > reserved_bytes + tolerance_bytes:
        held = f"the peak of the events, {format_mib(peak_bytes)}, is doubtful: the snapshot's "
        return [f"{held}segments had at most {format_mib(reserved_bytes)}, so {advice}"]
    return []


def _count_private(private: RecordedEvents | None) -> tuple[int, int, list[str]]:
    """Blocks of private pools, their most bytes at once, and a note where that is not known."""
    if private is None:
        return 0, 0, []
    try:
        events = normalise(private)
    except TraceError as err:
        return 0, 0, [f"the events of private pools are not counted, they do not fit: {err}"]
    return events.block_count, events.peak_live_bytes, []
