"""One table of all allocators on all loops, in Markdown."""

from collections.abc import Sequence

from benchmarks.pool_cuda.figures import Point, Standing, Start, geometric_mean, standings, start
from benchmarks.pool_cuda.spec import (
    NATIVE,
    POOL,
    Choice,
)
from benchmarks.pool_cuda.state import State

HEADER = (
    "loop",
    "allocator",
    "smallest capacity ÷ peak",
    "step there, ms",
    "÷ native uncapped",
    "worst step there, ms",
    "step uncapped, ms",
    "÷ native uncapped",
    "worst step uncapped, ms",
    "memory then ÷ peak",
    "first tensor, s",
    "40 GiB, s",
)
NONE = "-"


def table(state: State, choice: Choice) -> str:
    """Lay the results out: a row a loop and allocator, and one an allocator for all loops."""
    found = standings(state, choice)
    rows = [_loop_row(each) for each in found]
    for allocator in (POOL, NATIVE, *choice.others):
        mine = [each for each in found if each.allocator == allocator]
        pages = choice.page_bytes if allocator == POOL else None
        begun = start(state, allocator, pages and pages >> 20)
        if mine or begun:
            rows.append(_overall_row(allocator, mine, begun))
    note = (
        f"The peak is that of requested bytes under native. {POOL} uncapped: 1.25 x the peak. "
        "A step is the time of the whole loop by its steps; the worst step leaves the first out. "
        "Times of peers are of one run of all allocators, - where it was not made; those of the "
        "pool and of native are else of rounds by turns. "
        "Last rows: geometric means, - where a loop is missing; start-up is of a fresh process."
    )
    return f"{_markdown([HEADER, *rows])}\n\n{note}"


def _loop_row(mine: Standing) -> Sequence[str]:
    there, free = mine.smallest, mine.uncapped
    least = NONE if there is None else f"{'' if mine.exact else '≤ '}{there.ratio:.3f}"
    return (
        mine.loop,
        mine.allocator,
        least,
        *_times(there),
        *_times(free),
        NONE if free is None or mine.allocator == POOL else f"{free.ratio:.3f}",
        "",
        "",
    )


def _times(point: Point | None) -> tuple[str, str, str]:
    if point is None or point.time is None:
        return NONE, NONE, NONE
    time = point.time
    return f"{time.step_ms:.1f}", f"{time.to_native:.3f}", f"{time.worst_ms:.0f}"


def _overall_row(allocator: str, mine: Sequence[Standing], begun: Start | None) -> Sequence[str]:
    there, free = [each.smallest for each in mine], [each.uncapped for each in mine]
    return (
        f"**all {len(mine)}**",
        allocator,
        _number(_mean_memory(there)),
        "",
        _number(_mean_slowdown(there)),
        "",
        "",
        _number(_mean_slowdown(free)),
        "",
        NONE if allocator == POOL else _number(_mean_memory(free)),
        _number(begun.first_s if begun else None),
        _number(begun.all_s if begun else None),
    )


def _mean_memory(points: Sequence[Point | None]) -> float | None:
    return geometric_mean(point and point.ratio for point in points)


def _mean_slowdown(points: Sequence[Point | None]) -> float | None:
    times = [point and point.time for point in points]
    return geometric_mean(time and time.to_native for time in times)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|---|" + "---:|" * (len(rows[0]) - 2))
    return "\n".join(lines)
