"""One table of all allocators on all loops, in Markdown."""

from collections.abc import Sequence

from _cuda_figures import Point, Standing, Start, geometric_mean, standings, start
from _cuda_plan import NATIVE, POOL, Choice
from _cuda_state import State

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
    native = {each.loop: each.uncapped for each in found if each.allocator == NATIVE}
    rows = [_loop_row(each, native.get(each.loop)) for each in found]
    for allocator in (POOL, NATIVE, *choice.others):
        mine = [each for each in found if each.allocator == allocator]
        pages = choice.page_bytes if allocator == POOL else None
        begun = start(state, allocator, pages and pages >> 20)
        if mine or begun:
            rows.append(_overall_row(allocator, mine, native, begun))
    note = (
        f"The peak is that of requested bytes under native. {POOL} uncapped: 1.25 x the peak. "
        "A step is the time of the whole loop by its steps; the worst step leaves the first out. "
        "Last rows: geometric means, - where a loop is missing; start-up is of a fresh process."
    )
    return f"{_markdown([HEADER, *rows])}\n\n{note}"


def _loop_row(mine: Standing, native: Point | None) -> Sequence[str]:
    there, free = mine.smallest, mine.uncapped
    least = NONE if there is None else f"{'' if mine.exact else '≤ '}{there.ratio:.3f}"
    return (
        mine.loop,
        mine.allocator,
        least,
        *_times(there, native),
        *_times(free, native),
        NONE if free is None or mine.allocator == POOL else f"{free.ratio:.3f}",
        "",
        "",
    )


def _times(point: Point | None, native: Point | None) -> tuple[str, str, str]:
    if point is None:
        return NONE, NONE, NONE
    ratio = NONE if native is None else f"{point.step_ms / native.step_ms:.3f}"
    return f"{point.step_ms:.1f}", ratio, f"{point.worst_ms:.0f}"


def _overall_row(
    allocator: str, mine: Sequence[Standing], native: dict[str, Point | None], begun: Start | None
) -> Sequence[str]:
    def slower(each: Standing, point: Point | None) -> float | None:
        plain = native.get(each.loop)
        return None if point is None or plain is None else point.step_ms / plain.step_ms

    least = geometric_mean(each.smallest.ratio if each.smallest else None for each in mine)
    there = geometric_mean(slower(each, each.smallest) for each in mine)
    free = geometric_mean(slower(each, each.uncapped) for each in mine)
    memory = geometric_mean(each.uncapped.ratio if each.uncapped else None for each in mine)
    return (
        f"**all {len(mine)}**",
        allocator,
        _number(least),
        "",
        _number(there),
        "",
        "",
        _number(free),
        "",
        NONE if allocator == POOL else _number(memory),
        _number(begun.first_s if begun else None),
        _number(begun.all_s if begun else None),
    )


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|---|" + "---:|" * (len(rows[0]) - 2))
    return "\n".join(lines)
