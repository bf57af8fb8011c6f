"""Finds the heaviest step of a trace by its curve of live bytes.

Recorded loops carry no step marks, but their live bytes do: each step rises from a floor (weights,
optimizer state) and comes back to it. The floor is the lowest level to which the curve comes back
again and again; an excursion from near the floor to far above it and back is a step.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vramkit.errors import TraceError
from vramkit.simulate._events import Events, Int64

# Levels tried as floor, as fractions of the peak.
_LEVELS = 128
# Where an excursion begins and ends, between the floor and the peak.
_LOW_MARK = 0.05
# What it must reach. The lower marks are for recordings whose highest step is cut off at the end.
_HIGH_MARKS = (0.5, 0.25, 0.125)
# A level to which the curve came back this often is a floor rather than a start-up phase.
_RECURRENCES = 3
# Turning points of the curve that are looked at for the floor; enough for thousands of steps.
_MAX_POINTS = 1 << 15


@dataclass(frozen=True)
class Step:
    """Events ``start`` to ``stop - 1``: from a low of the live bytes over a peak to a low."""

    start: int
    stop: int


@dataclass(frozen=True)
class _Excursions:
    """Rises from below the low mark to above the high mark and back, one entry each."""

    before: Int64  # last event below the low mark before the rise
    after: Int64  # first event below it after the fall


def find_heaviest_step(events: Events) -> Step:
    """Find the complete step with the highest peak.

    Raises:
        TraceError: The live bytes never come back from a peak.
    """
    live = np.concatenate([[0], events.live_bytes])
    low, high = _marks(live)
    found = _excursions(live, low, high)
    peaks = [live[b:a].max() for b, a in zip(found.before, found.after, strict=True)]
    best = int(np.argmax(peaks))
    # The low mark may just touch the floor; the valley around it goes a little higher.
    valley_mark = low + _LOW_MARK * (float(live.max()) - low)
    # Entry i of `live` is the state before event i.
    stop = _stop_of(live, int(found.after[best]), valley_mark)
    return Step(_start_of(live, int(found.before[best]), valley_mark, int(live[stop])), stop)


def _marks(live: Int64) -> tuple[float, float]:
    """The low and the high mark of the lowest floor that recurs."""
    points = _turning_points(live)
    for high_mark in _HIGH_MARKS:
        count, low, high = _lowest_recurring(points, high_mark)
        if count:
            return low, high
    raise TraceError(
        "no step can be found: the live bytes rise and never come back to a lower level; "
        "record several whole steps, or replay without --repeat-step"
    )


def _lowest_recurring(points: Int64, high_mark: float) -> tuple[int, float, float]:
    peak, best = float(points.max()), (0, 0.0, 0.0)
    for level in range(_LEVELS):
        floor = peak * level / _LEVELS
        low = floor + _LOW_MARK * (peak - floor)
        high = floor + high_mark * (peak - floor)
        count = len(_excursions(points, low, high).before)
        if count > best[0]:
            best = (count, low, high)
        if count >= _RECURRENCES:
            break
    return best


def _turning_points(live: Int64) -> Int64:
    """The curve with the lowest and the highest point of each stretch only."""
    width = -(-2 * len(live) // _MAX_POINTS)
    if width <= 2:
        return live
    whole = len(live) // width * width
    rows = live[:whole].reshape(-1, width)
    first_low = rows.argmin(axis=1) < rows.argmax(axis=1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    pairs = np.stack([np.where(first_low, low, high), np.where(first_low, high, low)], axis=1)
    return np.concatenate([pairs.reshape(-1), live[whole:]])


def _excursions(live: Int64, low: float, high: float) -> _Excursions:
    marked = np.flatnonzero((live <= low) | (live >= high))
    is_high = live[marked] >= high
    change = is_high[1:] != is_high[:-1]
    rises = np.flatnonzero(change & is_high[1:])
    falls = np.flatnonzero(change & is_high[:-1])
    # A fall without a rise opens a recording that began above the high mark.
    falls = falls[falls > rises[0]] if len(rises) else falls[:0]
    return _Excursions(before=marked[rises[: len(falls)]], after=marked[falls + 1])


def _start_of(live: Int64, before: int, valley_mark: float, level: int) -> int:
    """The last point not above ``level`` of the valley that ends at ``before``, or its lowest.

    The valley before the first step begins at nothing; the step begins where it will end.
    """
    above: NDArray[np.intp] = np.flatnonzero(live[:before] > valley_mark)
    begin = int(above[-1]) + 1 if len(above) else 0
    valley = live[begin : before + 1]
    low = np.flatnonzero(valley <= max(level, int(valley.min())))
    return begin + int(low[-1])


def _stop_of(live: Int64, after: int, valley_mark: float) -> int:
    """The first lowest point of the valley that begins at ``after``."""
    above: NDArray[np.intp] = np.flatnonzero(live[after:] > valley_mark)
    end = after + int(above[0]) if len(above) else len(live)
    return after + int(live[after:end].argmin())
