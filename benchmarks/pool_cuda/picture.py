"""Memory against time, a panel a loop: the nearer to the lower left corner the better."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pool_cuda.figures import Point, Standing, pool_points, standings
from benchmarks.pool_cuda.spec import (
    NATIVE,
    POOL,
    Choice,
)
from benchmarks.pool_cuda.state import State

COLOURS = {
    POOL: "#1b6ca8",
    NATIVE: "#555555",
    "expandable": "#d1495b",
    "async": "#edae49",
    "rmm": "#66a182",
}
NAMES = {"expandable": "expandable_segments", "async": "cudaMallocAsync", "rmm": "RMM pool"}
COLUMNS = 3


def points(mine: Standing, rounds: Sequence[Point]) -> list[Point]:
    """Return what is drawn of one allocator, from little memory to much."""
    found = {point.ratio: point for point in (mine.smallest, mine.uncapped) if point}
    if mine.allocator == POOL:
        found |= {point.ratio: point for point in rounds}
    return [found[ratio] for ratio in sorted(found) if found[ratio].time]


def _draw_line(axis: Any, mine: Standing, shown: Sequence[Point]) -> None:
    axis.plot(
        [point.ratio for point in shown],
        [point.time.to_native for point in shown if point.time],
        "o-",
        color=COLOURS[mine.allocator],
        label=NAMES.get(mine.allocator, mine.allocator),
        markersize=5,
        linewidth=1.2,
    )


def draw(state: State, choice: Choice, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing was measured that could be drawn.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = [each for each in standings(state, choice) if each.uncapped or each.smallest]
    loops = list(dict.fromkeys(each.loop for each in found))
    if not loops:
        raise ValueError("no loop has been measured yet: there is nothing to draw")
    lines = -(-len(loops) // COLUMNS)
    figure, axes = plt.subplots(
        lines, COLUMNS, figsize=(4.2 * COLUMNS, 3.2 * lines + 0.7), squeeze=False
    )
    for axis in axes.flat[len(loops) :]:
        axis.set_visible(False)
    for axis, loop in zip(axes.flat, loops, strict=False):
        rounds = pool_points(state, loop, choice.rounds)
        for mine in [each for each in found if each.loop == loop]:
            _draw_line(axis, mine, points(mine, rounds))
        axis.set_title(loop, fontsize=10)
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.axvline(1.0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axis.grid(alpha=0.25)
    figure.supxlabel("memory ÷ peak of requested bytes (left end: the smallest that completes)")
    figure.supylabel("time of the whole loop ÷ native's without a limit")
    handles = {
        text: handle
        for axis in axes.flat[: len(loops)]
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=len(handles))
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
