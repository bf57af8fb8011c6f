"""What bench_pool_cuda measures, and what is still to do: a pure function of what is done.

Measurements that are compared form a group, which counts only when one run made all of it. Some
need the results of others: those appear in the plan once the others are there.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from _cuda_loops import LOOPS

Result = Mapping[str, Any]

MIB = 1 << 20
PAGE_STEP_BYTES = 2 * MIB
RATIOS = (1.01, 1.03, 1.25)
OTHERS = ("expandable", "async", "rmm")
POOL = "vramkit"
NATIVE = "native"

# A group's loops take turns of so many steps: the machine's speed changes from second to second.
TURN_STEPS = 5
TURN_ENDS = "turn"  # what a child says then
MOST_IN_TURNS = 4  # so many have room on the device at once

EQUAL_LOOPS = ("unet_tiles", "gnn_sampled", "llama_ckpt")
EQUAL_CYCLE = 4
EQUAL_STEPS = 6

HOST_SIZES = {"1 MiB": MIB, "4 KiB": 4096}
HOST_THREADS = (1, 8)
HOST_ROUNDS = 5

STARTUP_BYTES = 40 << 30
STARTUP_PAGES_MIB = (None, 2, 4, 8, 32)  # None: what the pool takes by itself

_HIGHEST_RATIO = 5.0


@dataclass(frozen=True)
class Spec:
    """What a child process is asked for."""

    kind: str  # "loop", "host", "startup"
    allocator: str
    loop: str = ""
    mode: str = "whole"  # of a loop: "whole", "synced", "equal"
    capacity_bytes: int | None = None  # None: no limit
    page_bytes: int | None = None  # of the pool; None: what it takes by itself
    outside_bytes: int = 0  # of the device, beside an allocator that is limited by ballast

    def as_json(self) -> dict[str, object]:
        """Return the object that the child process reads."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """One child process's work, under a name that is the same in every run."""

    key: str
    spec: Spec


Group = tuple[Measurement, ...]


class Known(Protocol):
    """What is done already."""

    def result(self, key: str) -> Result | None:
        """Return the result of a measurement, failed ones too; None when it is not done."""

    def complete(self, group: Group) -> bool:
        """Tell whether one run made all of a group."""


@dataclass(frozen=True)
class Choice:
    """What is wanted of the whole plan."""

    loops: tuple[str, ...]
    parts: tuple[str, ...]
    rounds: int
    page_bytes: int | None = None  # of the pool, in loops; None: what it takes by itself
    others: tuple[str, ...] = OTHERS


def capacity_bytes(ratio: float, peak_bytes: int, page_bytes: int | None) -> int:
    """Take ``ratio`` times the peak, rounded down to whole pages and to whole 2 MiB."""
    step = max(page_bytes or 0, PAGE_STEP_BYTES)
    return int(peak_bytes * ratio) // step * step


def reference_key(loop: str) -> str:
    """Name the run that says how much a loop has alive at once."""
    return f"reference/{loop}"


def whole_key(loop: str, who: str, number: int) -> str:
    """Name one contestant's run of a loop in one round."""
    return f"whole/{loop}/{who}/{number}"


def uncapped_key(loop: str, allocator: str) -> str:
    """Name a further peer's run of a loop with no limit."""
    return f"peers/{loop}/{allocator}"


def try_key(loop: str, allocator: str, ratio: float) -> str:
    """Name an attempt to run a loop in ``ratio`` times its peak."""
    return f"smallest/{loop}/{allocator}/{ratio:.3f}"


def at(ratio: float) -> str:
    """Name the pool at a capacity of ``ratio`` times the peak."""
    return f"{POOL}@{ratio:.2f}"


def time_key(loop: str, allocator: str, *, limited: bool) -> str:
    """Name a run of the last round, in the smallest capacity or with no limit."""
    return f"times/{loop}/{allocator}/{'smallest' if limited else 'uncapped'}"


def peak_bytes(known: Known, loop: str) -> int | None:
    """Return the loop's peak of requested bytes; None until its reference run has succeeded."""
    result = known.result(reference_key(loop))
    return int(result["peak_requested_bytes"]) if result and result["ok"] else None


def peaks(known: Known, choice: Choice) -> Iterable[tuple[str, int]]:
    """Return the loops whose peak is known."""
    for loop in choice.loops:
        if (peak := peak_bytes(known, loop)) is not None:
            yield loop, peak


def _limited(
    known: Known, choice: Choice, loop_and_peak: tuple[str, int], allocator: str, ratio: float
) -> Spec:
    """Ask for a loop in ``ratio`` times its peak."""
    loop, peak = loop_and_peak
    uncapped = known.result(uncapped_key(loop, allocator)) or {}
    return Spec(
        "loop",
        allocator,
        loop,
        capacity_bytes=capacity_bytes(ratio, peak, choice.page_bytes),
        page_bytes=choice.page_bytes,
        outside_bytes=int(uncapped.get("outside_bytes") or 0),
    )


def _references(known: Known, choice: Choice) -> Iterable[Group]:
    for loop in choice.loops:
        yield (Measurement(reference_key(loop), Spec("loop", NATIVE, loop, "synced")),)


def _round(known: Known, choice: Choice, number: int) -> Iterable[Group]:
    for loop, peak in peaks(known, choice):
        specs = {NATIVE: Spec("loop", NATIVE, loop)} | {
            at(ratio): _limited(known, choice, (loop, peak), POOL, ratio) for ratio in RATIOS
        }
        group = [Measurement(whole_key(loop, who, number), spec) for who, spec in specs.items()]
        first = number % len(group)
        yield tuple(group[first:] + group[:first])


def _first_round(known: Known, choice: Choice) -> Iterable[Group]:
    return _round(known, choice, 0)


def _more_rounds(known: Known, choice: Choice) -> Iterable[Group]:
    for number in range(1, choice.rounds):
        yield from _round(known, choice, number)


def _host(known: Known, choice: Choice) -> Iterable[Group]:
    pair = [
        Spec("host", NATIVE),
        Spec("host", POOL, capacity_bytes=4 << 30, page_bytes=choice.page_bytes),
    ]
    turns = [
        Measurement(f"host/{spec.allocator}/{number}", spec)
        for number in range(HOST_ROUNDS)
        for spec in (pair if number % 2 == 0 else pair[::-1])
    ]
    yield tuple(turns)


def startup_key(allocator: str, page_mib: int | None = None) -> str:
    """Name a start-up measurement; only the pool may be told its pages."""
    return f"startup/{allocator}" + ("" if page_mib is None else f"/{page_mib} MiB")


def _startup(known: Known, choice: Choice) -> Iterable[Group]:
    pool = [
        Measurement(
            startup_key(POOL, pages),
            Spec("startup", POOL, page_bytes=None if pages is None else pages * MIB),
        )
        for pages in STARTUP_PAGES_MIB
    ]
    peers = [
        Measurement(startup_key(name), Spec("startup", name)) for name in (NATIVE, *choice.others)
    ]
    yield tuple(pool + peers)


def equal_key(loop: str, allocator: str) -> str:
    """Name a run of a loop whose steps are all equal."""
    return f"equal/{loop}/{allocator}"


def _equal(known: Known, choice: Choice) -> Iterable[Group]:
    for loop in EQUAL_LOOPS:
        if loop not in choice.loops:
            continue
        reference = Measurement(equal_key(loop, NATIVE), Spec("loop", NATIVE, loop, "equal"))
        yield (reference,)
        result = known.result(reference.key)
        if result and result["ok"]:
            peak = int(result["peak_requested_bytes"])
            capacity = capacity_bytes(RATIOS[0], peak, choice.page_bytes)
            spec = Spec("loop", POOL, loop, "equal", capacity, choice.page_bytes)
            yield (Measurement(equal_key(loop, POOL), spec),)


def _uncapped_peers(known: Known, choice: Choice) -> Iterable[Group]:
    for loop in choice.loops:
        for name in contestants(loop, choice.others):
            yield (Measurement(uncapped_key(loop, name), Spec("loop", name, loop)),)


def contestants(loop: str, others: Iterable[str]) -> list[str]:
    """Leave rmm out where it would be wrong: under PyTorch it ignores record_stream."""
    return [name for name in others if name != "rmm" or not LOOPS[loop].records_streams]


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


def _smallest(known: Known, choice: Choice) -> Iterable[Group]:
    for loop, peak in peaks(known, choice):
        for name in contestants(loop, (NATIVE, *choice.others, POOL)):
            ratio = search(known, choice, loop, name).untried
            if ratio is not None:
                spec = _limited(known, choice, (loop, peak), name, ratio)
                yield (Measurement(try_key(loop, name, ratio), spec),)


def _times(known: Known, choice: Choice) -> Iterable[Group]:
    """Everyone once more in one run, with no limit and in the smallest capacity that was found."""
    for loop, peak in peaks(known, choice):
        group = []
        for name in contestants(loop, (NATIVE, POOL, *choice.others)):
            alone = _without_limit(known, loop, name)
            if alone and not alone["ok"]:
                continue
            found = search(known, choice, loop, name)
            if not found.over:
                break
            free = Spec("loop", name, loop)
            if name == POOL:
                free = _limited(known, choice, (loop, peak), name, RATIOS[-1])
            group.append(Measurement(time_key(loop, name, limited=False), free))
            if found.least is not None:
                spec = _limited(known, choice, (loop, peak), name, found.least)
                group.append(Measurement(time_key(loop, name, limited=True), spec))
        else:
            yield tuple(group)


def takes_turns(group: Group) -> bool:
    """Tell whether all of a group may have their memory at once, and so take turns in between."""
    return len(group) <= MOST_IN_TURNS and not any(
        each.spec.loop and LOOPS[each.spec.loop].one_at_a_time for each in group
    )


_STAGES: tuple[tuple[str, Callable[[Known, Choice], Iterable[Group]]], ...] = (
    ("reference", _references),
    ("whole", _first_round),
    ("host", _host),
    ("startup", _startup),
    ("equal", _equal),
    ("whole", _more_rounds),
    ("peers", _uncapped_peers),
    ("smallest", _smallest),
    ("times", _times),
)
PARTS = tuple(dict.fromkeys(name for name, _ in _STAGES))


def pending(known: Known, choice: Choice) -> list[Group]:
    """Return what is to be measured next, first things first; empty when all is done."""
    return [
        group
        for part, stage in _STAGES
        if part in choice.parts
        for group in stage(known, choice)
        if not known.complete(group)
    ]
