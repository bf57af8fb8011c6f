"""The bisection for the smallest capacity in which a loop completes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.pool_cuda.loops import LOOPS
from benchmarks.pool_cuda.spec import (
    NATIVE,
    POOL,
    RATIOS,
    Choice,
    Known,
    Result,
    at,
    peak_bytes,
    try_key,
    uncapped_key,
    whole_key,
)

_HIGHEST_RATIO = 5.0


@dataclass(frozen=True)
class Bracket:
    """Where the smallest capacity lies, as multiples of the peak: ``low`` fails."""

    low: float
    high: float
    tolerance: float


def next_try(tries: Mapping[float, bool], bracket: Bracket) -> float | None:
    """Choose the next ratio to try; None when the smallest that completes is known well enough."""
    passed = [ratio for ratio, ok in tries.items() if ok]
    failed = [ratio for ratio, ok in tries.items() if not ok]
    above = [ratio * 1.1 for ratio in failed if ratio >= bracket.high]
    high = min(passed) if passed else max([bracket.high, *above])
    if high > _HIGHEST_RATIO:
        return None
    low = max([bracket.low, *(ratio for ratio in failed if ratio < high)])
    if high - low > bracket.tolerance:
        return round((low + high) / 2, 3)
    return None if passed else _up(high)


def _up(ratio: float) -> float:
    return math.ceil(ratio * 1000) / 1000


def tries_of(known: Known, loop: str, allocator: str, rounds: int) -> dict[float, Result]:
    """Return the attempts at a loop by their ratio; the pool's rounds are attempts too."""
    found: dict[float, Result] = {}
    if allocator == POOL:
        for ratio in RATIOS:
            results = [known.result(whole_key(loop, at(ratio), n)) for n in range(rounds)]
            done = [result for result in results if result]
            if done:
                found[ratio] = min(done, key=lambda result: bool(result["ok"]))
    for thousandths in range(int(_HIGHEST_RATIO * 1000) + 1):
        ratio = thousandths / 1000
        if result := known.result(try_key(loop, allocator, ratio)):
            found[ratio] = result
    return found


def _without_limit(known: Known, loop: str, allocator: str) -> Result | None:
    key = whole_key(loop, NATIVE, 0) if allocator == NATIVE else uncapped_key(loop, allocator)
    return known.result(key)


def bracket_of(known: Known, loop: str, allocator: str) -> Bracket | None:
    """Return where to search; None while no run without a limit says where to begin."""
    timing, peak = LOOPS[loop].timing, peak_bytes(known, loop)
    low = 0.4 if timing else 0.99
    if peak is None:
        return None
    if allocator == POOL:
        return Bracket(low, RATIOS[-1], 0.05 if timing else 0.01)
    result = _without_limit(known, loop, allocator)
    if not result or not result["ok"]:
        return None
    return Bracket(low, result["peak_reserved_bytes"] / peak, 0.08 if timing else 0.04)


@dataclass(frozen=True)
class Search:
    """How far the search for one allocator's smallest capacity is, in multiples of the peak."""

    least: float | None  # the smallest that completed
    untried: float | None  # what to try next
    over: bool


def search(known: Known, choice: Choice, loop: str, allocator: str) -> Search:
    """Gather what the attempts at a loop say."""
    bracket = bracket_of(known, loop, allocator)
    tries = tries_of(known, loop, allocator, choice.rounds)
    passed = {ratio: bool(result["ok"]) for ratio, result in tries.items()}
    least = min((ratio for ratio, ok in passed.items() if ok), default=None)
    untried = next_try(passed, bracket) if bracket else None
    return Search(least, untried, over=bracket is not None and untried is None)
