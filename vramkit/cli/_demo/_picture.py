"""Draws a pool's live and mapped memory over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vramkit.cli._demo._memory import Sample
from vramkit.pool import PoolStats
from vramkit.units import format_mib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIB = 1 << 20
_DETAILED_STEPS = 3
# A budget of more than this many times the mapped memory would press the curves flat.
_TALLEST = 3

_LIVE, _MAPPED, _BUDGET, _TEXT, _GRID = "#2563eb", "#475569", "#dc2626", "#334155", "#e2e8f0"
_PHASES = {"forward": "#dbeafe", "backward": "#fef3c7", "optimizer": "#bbf7d0"}


def draw(samples: Sequence[Sample], *, stats: PoolStats, path: Path) -> None:
    """Write a picture: all steps above, a few of them in detail below.

    Args:
        samples: In the order in which they were taken.
        stats: Of the pool after the last sample.
        path: The PNG file.

    Raises:
        OSError: The file cannot be written.
    """
    # Not pyplot, which picks a window system and keeps figures in a global list.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=130, layout="constrained")
    whole, detail = figure.subplots(2, 1)
    _draw_steps(whole, samples, stats)
    _draw_detail(detail, samples)
    for axes in (whole, detail):
        _finish(axes, stats)
    figure.legend(
        *whole.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    figure.suptitle(
        f"Training inside a vramkit pool of {format_mib(stats.capacity_bytes)}",
        color=_TEXT,
        fontweight="bold",
    )
    figure.savefig(path, format="png")


def _draw_steps(axes: "Axes", samples: Sequence[Sample], stats: PoolStats) -> None:
    step = np.array([sample.step for sample in samples])
    live = np.array([sample.live_bytes for sample in samples]) / _MIB
    mapped = np.array([sample.mapped_bytes for sample in samples]) / _MIB
    steps, starts = np.unique(step, return_index=True)
    low, high = np.minimum.reduceat(live, starts), np.maximum.reduceat(live, starts)
    most_mapped = np.maximum.reduceat(mapped, starts)
    axes.plot(steps, most_mapped, color=_MAPPED, linewidth=1.8, label="mapped")
    axes.plot(steps, high, color=_LIVE, linewidth=1.6, label="live")
    axes.fill_between(
        steps, low, high, color=_LIVE, alpha=0.2, linewidth=0, label="live, range of a step"
    )
    peak_mib = stats.peak_live_bytes / _MIB
    label = f"highest live, {format_mib(stats.peak_live_bytes)}"
    axes.axhline(peak_mib, color=_LIVE, linestyle=":", linewidth=1.4, label=label)
    title = "Every step (an epoch's last batch is smaller; the highest lies between samples)"
    _set_title(axes, title)
    axes.set_xlabel("training step")
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))


def _draw_detail(axes: "Axes", samples: Sequence[Sample]) -> None:
    chosen = _full_steps(samples)
    begin_s = chosen[0].seconds
    ms = [(sample.seconds - begin_s) * 1000 for sample in chosen]
    _shade_phases(axes, chosen, ms)
    axes.plot(ms, [sample.mapped_bytes / _MIB for sample in chosen], color=_MAPPED, linewidth=1.8)
    live = [sample.live_bytes / _MIB for sample in chosen]
    axes.plot(ms, live, color=_LIVE, linewidth=1.6, marker="o", markersize=3.5)
    first, last = chosen[0].step, chosen[-1].step
    steps = f"Steps {first:,} to {last:,}" if last > first else f"Step {first:,}"
    _set_title(axes, f"{steps} (a dot is a sample, taken after each layer)")
    axes.set_xlabel("milliseconds")
    axes.set_xlim(0, ms[-1])
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderaxespad=0)


def _full_steps(samples: Sequence[Sample]) -> list[Sample]:
    """The last few steps up to one that reaches the highest sample."""
    highest = max(sample.live_bytes for sample in samples)
    last = max(sample.step for sample in samples if sample.live_bytes == highest)
    return [sample for sample in samples if last - _DETAILED_STEPS < sample.step <= last]


def _shade_phases(axes: "Axes", samples: Sequence[Sample], ms: Sequence[float]) -> None:
    """Colour the time from each sample to the next by the phase that the next one ends."""
    unnamed = dict(_PHASES)
    for begin, end, sample in zip(ms, ms[1:], samples[1:], strict=False):
        label = sample.phase if unnamed.pop(sample.phase, None) else None
        axes.axvspan(begin, end, color=_PHASES[sample.phase], linewidth=0, zorder=0, label=label)


def _finish(axes: "Axes", stats: PoolStats) -> None:
    capacity_mib, mapped_mib = stats.capacity_bytes / _MIB, stats.peak_mapped_bytes / _MIB
    inside = capacity_mib <= _TALLEST * mapped_mib
    label = f"budget, {format_mib(stats.capacity_bytes)}" + ("" if inside else " (above)")
    axes.axhline(capacity_mib, color=_BUDGET, linestyle="--", linewidth=1.5, label=label)
    axes.set_ylim(0, 1.1 * (capacity_mib if inside else mapped_mib))
    axes.set_ylabel("MiB")
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_TEXT)


def _set_title(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", color=_TEXT, fontsize="medium")
