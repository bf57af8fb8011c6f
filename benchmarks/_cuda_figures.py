"""What the results of bench_pool_cuda say: medians, ratios, smallest capacities."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from _cuda_plan import (
    NATIVE,
    POOL,
    RATIOS,
    Choice,
    Result,
    at,
    bracket_of,
    contestants,
    next_try,
    peak_bytes,
    startup_key,
    tries_of,
    uncapped_key,
    whole_key,
)
from _cuda_state import State

CONTESTANTS = (NATIVE, *(at(ratio) for ratio in RATIOS))


def whole_rounds(state: State, loop: str, rounds: int) -> dict[str, list[Result]]:
    """Return each contestant's results in the rounds that one run made as a whole."""
    found: dict[str, list[Result]] = {who: [] for who in CONTESTANTS}
    for number in range(rounds):
        results = state.together([whole_key(loop, who, number) for who in CONTESTANTS])
        for who, result in zip(CONTESTANTS, results or [], strict=False):
            found[who].append(result)
    return found


def total_s(result: Result) -> float:
    """Return the time of the whole loop."""
    return float(result["total_s"])


def median_ms(result: Result) -> float:
    """Return the median step: what else the machine does for some seconds does not move it."""
    return statistics.median(map(float, result["steps_ms"]))


def worst_ms(result: Result) -> float:
    """Return the longest step but the first, which loads kernels under every allocator."""
    return float(max(result["steps_ms"][1:]))


@dataclass(frozen=True)
class Point:
    """One allocator at one capacity: memory as a multiple of the peak, and time."""

    ratio: float
    step_ms: float  # the time of the whole loop by its number of steps
    worst_ms: float


def _point(ratio: float, results: Iterable[Result]) -> Point | None:
    done = [result for result in results if result["ok"]]
    if not done:
        return None
    return Point(
        ratio,
        statistics.median(1e3 * result["total_s"] / result["steps_done"] for result in done),
        statistics.median(map(worst_ms, done)),
    )


def pool_points(state: State, loop: str, rounds: int) -> list[Point]:
    """Return the pool at each capacity of the rounds at which it completed."""
    taken = whole_rounds(state, loop, rounds)
    found = [_point(ratio, taken[at(ratio)]) for ratio in RATIOS]
    return [point for point in found if point is not None]


@dataclass(frozen=True)
class Standing:
    """How one allocator does on one loop; None where it was not measured or did not complete."""

    loop: str
    allocator: str
    smallest: Point | None
    exact: bool  # the search for the smallest capacity is over
    uncapped: Point | None  # at the memory it then takes; the pool: at its largest capacity
    tries: Mapping[float, bool]


def standing(state: State, loop: str, allocator: str, choice: Choice) -> Standing:
    """Gather what is known of one allocator on one loop."""
    tries = tries_of(state, loop, allocator, choice.rounds)
    completed = {ratio: bool(result["ok"]) for ratio, result in tries.items()}
    passed = [ratio for ratio, ok in completed.items() if ok]
    least = min(passed, default=None)
    bracket = bracket_of(state, loop, allocator)
    return Standing(
        loop,
        allocator,
        None if least is None else _point(least, [tries[least]]),
        bracket is not None and next_try(completed, bracket) is None,
        _uncapped(state, loop, allocator, choice.rounds),
        completed,
    )


def _uncapped(state: State, loop: str, allocator: str, rounds: int) -> Point | None:
    if allocator == POOL:
        return _point(RATIOS[-1], whole_rounds(state, loop, rounds)[at(RATIOS[-1])])
    if allocator == NATIVE:
        results = whole_rounds(state, loop, rounds)[NATIVE]
    else:
        result = state.result(uncapped_key(loop, allocator))
        results = [] if result is None else [result]
    peak = peak_bytes(state, loop)
    reserved = [result["peak_reserved_bytes"] for result in results if result["ok"]]
    return _point(statistics.median(reserved) / peak, results) if reserved and peak else None


def standings(state: State, choice: Choice) -> list[Standing]:
    """Gather what is known of every allocator on every loop, and leave out what is not."""
    everyone = [
        standing(state, loop, allocator, choice)
        for loop in choice.loops
        for allocator in contestants(loop, (POOL, NATIVE, *choice.others))
    ]
    return [each for each in everyone if each.smallest or each.uncapped]


@dataclass(frozen=True)
class Start:
    """Seconds from nothing to the first tensor, and to all of the memory: in a fresh process."""

    first_s: float
    all_s: float


def start(state: State, allocator: str, page_mib: int | None = None) -> Start | None:
    """Return an allocator's start-up, the first one of its process."""
    result = state.result(startup_key(allocator, page_mib))
    if not result or not result["ok"]:
        return None
    return Start(result["turns"][0]["first_s"], result["turns"][0]["all_s"])


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean; None when a value is missing, or all are."""
    found = list(values)
    if not found or None in found:
        return None
    return math.exp(statistics.fmean(math.log(value) for value in found if value))
