"""What the results of bench_pool_cuda say: medians, ratios, smallest capacities."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.pool_cuda.search import (
    search,
)
from benchmarks.pool_cuda.spec import (
    NATIVE,
    POOL,
    RATIOS,
    Choice,
    Result,
    at,
    contestants,
    peak_bytes,
    startup_key,
    time_key,
    uncapped_key,
    whole_key,
)
from benchmarks.pool_cuda.state import State

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


def quickest_s(rounds: Sequence[Result]) -> float:
    """Return the sum of each step's quickest time in all rounds: what else goes on only adds."""
    return sum(map(min, zip(*(result["steps_ms"] for result in rounds), strict=True))) / 1e3


@dataclass(frozen=True)
class Time:
    """How long one allocator takes for a loop, beside native with no limit in the same run."""

    step_ms: float  # the time of the whole loop by its number of steps
    worst_ms: float
    to_native: float


def _time(own: Sequence[Result], native: Sequence[Result]) -> Time | None:
    done, beside = ([each for each in results if each["ok"]] for results in (own, native))
    if not done or not beside:
        return None
    own_ms, native_ms = _step_ms(done), _step_ms(beside)
    return Time(own_ms, statistics.median(map(worst_ms, done)), own_ms / native_ms)


def _step_ms(results: Sequence[Result]) -> float:
    return statistics.median(1e3 * total_s(each) / each["steps_done"] for each in results)


@dataclass(frozen=True)
class Point:
    """One allocator at one capacity: memory as a multiple of the peak, and time if compared."""

    ratio: float
    time: Time | None


def pool_points(state: State, loop: str, rounds: int) -> list[Point]:
    """Return the pool at each capacity of the rounds at which it completed."""
    taken = whole_rounds(state, loop, rounds)
    found = [Point(ratio, _time(taken[at(ratio)], taken[NATIVE])) for ratio in RATIOS]
    return [point for point in found if point.time is not None]


@dataclass(frozen=True)
class Standing:
    """How one allocator does on one loop; None where it was not measured or did not complete."""

    loop: str
    allocator: str
    smallest: Point | None
    exact: bool  # the search for the smallest capacity is over
    uncapped: Point | None  # at the memory it then takes; the pool: at its largest capacity


def standing(state: State, loop: str, allocator: str, choice: Choice) -> Standing:
    """Gather what is known of one allocator on one loop."""
    found = search(state, choice, loop, allocator)
    memory = _memory_uncapped(state, loop, allocator, choice)
    turns = _times_by_turns(state, loop, allocator, choice.rounds)
    there = free = None
    if found.least is not None:
        time = _time_of_all(state, loop, allocator, limited=True)
        there = Point(found.least, time or turns.get(found.least))
    if memory is not None:
        time = _time_of_all(state, loop, allocator, limited=False)
        free = Point(memory, time or turns.get(memory if allocator == POOL else None))
    return Standing(loop, allocator, there, found.over, free)


def _times_by_turns(
    state: State, loop: str, allocator: str, rounds: int
) -> dict[float | None, Time | None]:
    """Return the times of the rounds by ratio, None for no limit: only native and the pool have."""
    if allocator == POOL:
        return {point.ratio: point.time for point in pool_points(state, loop, rounds)}
    if allocator == NATIVE:
        results = whole_rounds(state, loop, rounds)[NATIVE]
        return {None: _time(results, results)}
    return {}


def _time_of_all(state: State, loop: str, allocator: str, *, limited: bool) -> Time | None:
    """Return the time in the round in which everyone took part: that one is fair to all."""
    keys = [time_key(loop, allocator, limited=limited), time_key(loop, NATIVE, limited=False)]
    results = state.together(keys)
    return _time(results[:1], results[1:]) if results else None


def _memory_uncapped(state: State, loop: str, allocator: str, choice: Choice) -> float | None:
    """Return the memory, as a multiple of the peak, that an allocator takes without a limit."""
    if allocator == POOL:
        largest = whole_rounds(state, loop, choice.rounds)[at(RATIOS[-1])]
        return RATIOS[-1] if any(result["ok"] for result in largest) else None
    if allocator == NATIVE:
        results = whole_rounds(state, loop, choice.rounds)[NATIVE]
    else:
        result = state.result(uncapped_key(loop, allocator))
        results = [result] if result else []
    peak = peak_bytes(state, loop)
    reserved = [result["peak_reserved_bytes"] for result in results if result["ok"]]
    return statistics.median(reserved) / peak if reserved and peak else None


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
