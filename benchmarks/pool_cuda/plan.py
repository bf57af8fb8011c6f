"""What is still to be measured: a pure function of what is done.

Measurements that are compared form a group, which counts only when one run made all of it. Some
need the results of others: those appear in the plan once the others are there.
"""

from collections.abc import Callable, Iterable

from benchmarks.pool_cuda.search import (
    _without_limit,
    search,
)
from benchmarks.pool_cuda.spec import (
    EQUAL_LOOPS,
    HOST_ROUNDS,
    MIB,
    NATIVE,
    POOL,
    RATIOS,
    STARTUP_PAGES_MIB,
    Choice,
    Group,
    Known,
    Measurement,
    Spec,
    at,
    capacity_bytes,
    contestants,
    equal_key,
    peaks,
    reference_key,
    startup_key,
    time_key,
    try_key,
    uncapped_key,
    whole_key,
)


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
