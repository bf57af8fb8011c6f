"""The results of bench_pool_cuda as rows: the pool's figure beside that of a peer."""

import math
from collections.abc import Iterable, Mapping

from benchmarks._shared.harness import Row, Setting, Summary, summarize
from benchmarks.pool_cuda.figures import (
    median_ms,
    quickest_s,
    standings,
    start,
    total_s,
    whole_rounds,
    worst_ms,
)
from benchmarks.pool_cuda.loops import LOOPS
from benchmarks.pool_cuda.spec import (
    EQUAL_CYCLE,
    EQUAL_LOOPS,
    HOST_ROUNDS,
    HOST_SIZES,
    HOST_THREADS,
    NATIVE,
    POOL,
    RATIOS,
    STARTUP_PAGES_MIB,
    Choice,
    Result,
    at,
    equal_key,
    peak_bytes,
    reference_key,
    startup_key,
)
from benchmarks.pool_cuda.state import State

BENCH = "bench_pool_cuda"
SIGNS_OF_OTHER_WORK = 0.02
WHOLE_FIGURES = (
    ("whole_loop", "s", total_s),
    ("median_step", "ms", median_ms),
    ("worst_step", "ms", worst_ms),
)


def rows(state: State, choice: Choice) -> Iterable[Row]:
    """Yield a row for each figure that was measured."""
    for loop in choice.loops:
        yield from _whole_rows(state, loop, choice)
    yield from _smallest_rows(state, choice)
    yield from _equal_rows(state, choice)
    yield from _host_rows(state)
    yield from _startup_rows(state, choice)


def _settings(state: State, loop: str, choice: Choice) -> dict[str, Setting]:
    return {
        "loop": LOOPS[loop].what,
        "steps": LOOPS[loop].steps,
        "peak_requested_bytes": peak_bytes(state, loop),
        "pages": choice.page_bytes or "the pool's own choice",
    }


def _whole_rows(state: State, loop: str, choice: Choice) -> Iterable[Row]:
    rounds = whole_rounds(state, loop, choice.rounds)
    native = [result for result in rounds[NATIVE] if result["ok"]]
    if not native:
        return
    settings = _settings(state, loop, choice)
    for ratio in RATIOS:
        taken = rounds[at(ratio)]
        done = [result for result in taken if result["ok"]]
        if not taken:
            continue
        share = summarize([float(result["ok"]) for result in taken])
        yield Row(BENCH, loop, f"completes_at_{ratio:.2f}", "share", share, settings)
        if not done:
            continue
        names = ("page_bytes", "mapping_calls", "stitched_requests")
        books = settings | {name: done[-1][name] for name in names}
        for metric, unit, figure in WHOLE_FIGURES:
            own, theirs = (summarize(list(map(figure, results))) for results in (done, native))
            name = f"{metric}_at_{ratio:.2f}"
            yield Row(BENCH, loop, name, unit, own, books, NATIVE, theirs)
        if len(done) == len(native) > 1:
            pair = _once(quickest_s(done)), _once(quickest_s(native))
            name = f"quickest_steps_at_{ratio:.2f}"
            yield _beside(loop, name, "s", pair, books | {"rounds": len(done)}, NATIVE)


def _smallest_rows(state: State, choice: Choice) -> Iterable[Row]:
    found = {(each.loop, each.allocator): each for each in standings(state, choice)}
    for (loop, allocator), theirs in found.items():
        mine = found.get((loop, POOL))
        if allocator == POOL or mine is None:
            continue
        settings = _settings(state, loop, choice)
        if mine.smallest and theirs.smallest:
            exact: dict[str, Setting] = {"own_exact": mine.exact, "peer_exact": theirs.exact}
            pair = _once(mine.smallest.ratio), _once(theirs.smallest.ratio)
            yield _beside(loop, "smallest_capacity", "x peak", pair, settings | exact, allocator)
        for metric, own, peer in (
            ("step_at_smallest", mine.smallest, theirs.smallest),
            ("step_uncapped", mine.uncapped, theirs.uncapped),
        ):
            if own and peer and own.time and peer.time:
                capacities: dict[str, Setting] = {
                    "own_x_peak": own.ratio,
                    "peer_x_peak": peer.ratio,
                }
                pair = _once(own.time.step_ms), _once(peer.time.step_ms)
                yield _beside(loop, metric, "ms", pair, settings | capacities, allocator)


def _once(value: float) -> Summary:
    return summarize([value])


def _beside(
    case: str,
    metric: str,
    unit: str,
    pair: tuple[Summary, Summary],
    settings: Mapping[str, Setting],
    peer: str,
) -> Row:
    return Row(BENCH, case, metric, unit, pair[0], settings, peer, pair[1])


def _equal_rows(state: State, choice: Choice) -> Iterable[Row]:
    for loop in EQUAL_LOOPS:
        result = state.result(equal_key(loop, POOL))
        if not result or not result["ok"]:
            continue
        # The count stands after each step: from the second step's end on nothing may be added.
        calls = result["calls_by_step"]
        settings: dict[str, Setting] = {
            "loop": LOOPS[loop].what,
            "step": f"a cycle of {EQUAL_CYCLE} sizes",
            "steps": len(calls),
            "capacity_bytes": result["capacity_bytes"],
            "calls_after_step_1": calls[0],
            "calls_after_step_2": calls[1],
        }
        own = _once(calls[-1] - calls[1])
        yield Row(BENCH, loop, "mapping_calls_from_step_3", "calls", own, settings)


def _host_rows(state: State) -> Iterable[Row]:
    keys = [f"host/{who}/{n}" for who in (POOL, NATIVE) for n in range(HOST_ROUNDS)]
    results = state.together(keys)
    if results is None or not all(result["ok"] for result in results):
        return
    own, theirs = results[:HOST_ROUNDS], results[HOST_ROUNDS:]
    for size in HOST_SIZES:
        for threads in HOST_THREADS:
            name = f"{size}_{threads}"
            pair = _samples(own, name), _samples(theirs, name)
            case = f"empty_{size.replace(' ', '_')}_{threads}_threads"
            settings: dict[str, Setting] = {"threads": threads, "size": size}
            yield _beside(case, "pair_ns", "ns", pair, settings, NATIVE)
            pair = _samples(own, f"{name}_together"), _samples(theirs, f"{name}_together")
            yield _beside(case, "all_threads_ns_a_pair", "ns", pair, settings, NATIVE)


def _samples(results: Iterable[Result], name: str) -> Summary:
    return summarize([sample for result in results for sample in result[name]])


def _startup_rows(state: State, choice: Choice) -> Iterable[Row]:
    for pages in STARTUP_PAGES_MIB:
        mine = start(state, POOL, pages)
        if mine is None:
            continue
        result = state.result(startup_key(POOL, pages)) or {}
        names = ("page_bytes", "returned_s", "closed_s")
        books: dict[str, Setting] = {"capacity": "40 GiB"}
        books |= {name: result["turns"][0][name] for name in names}
        for peer in (NATIVE, *choice.others):
            theirs = start(state, peer)
            if theirs is None:
                continue
            case = "startup" if pages is None else f"startup_{pages}_MiB_pages"
            pair = _once(mine.first_s), _once(theirs.first_s)
            yield _beside(case, "first_tensor", "s", pair, books, peer)
            pair = _once(mine.all_s), _once(theirs.all_s)
            yield _beside(case, "all_40_GiB", "s", pair, books, peer)


def doubts(state: State, choice: Choice) -> list[str]:
    """Name results that cannot be trusted: other losses than the reference's, bad exits."""
    found = []
    for loop in choice.loops:
        reference = state.result(reference_key(loop))
        if not reference or not reference["ok"]:
            continue
        expected = reference["first_loss"]
        rounds = whole_rounds(state, loop, choice.rounds)
        for who, results in rounds.items():
            for result in results:
                loss = result.get("first_loss")
                if loss is not None and not _close(loss, expected):
                    found.append(f"{loop}: {who} began with loss {loss:.6g}, not {expected:.6g}")
                if result["ok"] and math.isnan(result["last_loss"]):
                    found.append(f"{loop}: {who} ended with a loss that is not a number")
                if "exit" in result:
                    found.append(f"{loop}: {who} did not end cleanly: {result['exit']}")
    return found


def _close(loss: float, expected: float) -> bool:
    return abs(loss - expected) <= SIGNS_OF_OTHER_WORK * max(abs(expected), 1e-6)
