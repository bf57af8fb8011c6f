"""Draws the live bytes of a trace over its events, as a page or a picture."""

from __future__ import annotations

import html
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vramkit.errors import InvalidArgumentError, MissingExtraError
from vramkit.estimate._peak import live_by_kind
from vramkit.estimate._recorder import Kind, Trace
from vramkit.units import format_mib

_COLUMNS = 1000
_WIDTH, _HEIGHT = 1000, 400
# Okabe and Ito's colours, which people who confuse red and green can tell apart.
_COLOURS = {
    Kind.PARAMETER: "#0072b2",
    Kind.GRADIENT: "#e69f00",
    Kind.OPTIMIZER_STATE: "#009e73",
    Kind.ACTIVATION: "#56b4e9",
    Kind.TEMPORARY: "#d55e00",
    Kind.WORKSPACE: "#cc79a7",
    Kind.KV_CACHE: "#f0e442",
    Kind.DATA: "#999999",
}


def draw(trace: Trace, path: Path, *, title: str) -> Path:
    """Write the drawing.

    Args:
        trace: What to draw.
        path: An ``.html`` or ``.png`` file.
        title: Stands above it.

    Raises:
        InvalidArgumentError: The name has another ending.
        MissingExtraError: Matplotlib is not installed.
    """
    check_name(path)
    columns, curves = _reduced(trace)
    if path.suffix == ".html":
        path.write_text(_page(columns, curves, title), encoding="utf-8")
    else:
        _picture(columns, curves, path, title)
    return path


def check_name(path: Path) -> None:
    """Refuse a file that :func:`draw` cannot write.

    Args:
        path: The file.

    Raises:
        InvalidArgumentError: Its name ends neither in ``.html`` nor in ``.png``.
    """
    if path.suffix not in (".html", ".png"):
        raise InvalidArgumentError(f"a timeline is an .html or .png file, not {path.name!r}")


def _reduced(trace: Trace) -> tuple[NDArray[np.int64], dict[Kind, NDArray[np.int64]]]:
    """Event numbers and curves at the highest point of each of at most a thousand stretches."""
    curves = live_by_kind(trace)
    total = np.sum(list(curves.values()), axis=0) if curves else np.zeros(0, dtype=np.int64)
    borders = np.linspace(0, len(total), min(_COLUMNS, len(total)) + 1).astype(np.int64)
    places = [
        begin + int(np.argmax(total[begin:end]))
        for begin, end in itertools.pairwise(borders.tolist())
    ]
    chosen = np.array(places, dtype=np.int64)
    return chosen, {kind: curve[chosen] for kind, curve in curves.items()}


def _page(columns: NDArray[np.int64], curves: dict[Kind, NDArray[np.int64]], title: str) -> str:
    base = np.zeros(len(columns), dtype=np.int64)
    total = np.sum(list(curves.values()), axis=0) if curves else base
    peak = max(int(total.max(initial=0)), 1)
    shapes, legend = [], []
    for kind, curve in curves.items():
        top = base + curve
        points = [*_points(top, peak), *reversed(_points(base, peak))]
        shapes.append(f'<polygon fill="{_COLOURS[kind]}" points="{" ".join(points)}"/>')
        legend.append(
            f'<span style="border-left:1em solid {_COLOURS[kind]};padding:0 1em 0 .4em">'
            f"{kind.value}, up to {format_mib(int(curve.max()))}</span>"
        )
        base = top
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<body style="font:14px sans-serif;margin:2em">'
        f"<h1 style='font-size:16px'>{html.escape(title)}: {format_mib(peak)} at the peak</h1>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" style="width:100%;border:1px solid #ccc" '
        f'role="img" aria-label="live bytes over events">{"".join(shapes)}</svg>'
        f"<p>{''.join(legend)}</p></body></html>\n"
    )


def _points(values: NDArray[np.int64], peak: int) -> list[str]:
    step = _WIDTH / max(len(values) - 1, 1)
    return [
        f"{place * step:.1f},{_HEIGHT * (1 - value / peak):.1f}"
        for place, value in enumerate(values.tolist())
    ]


def _picture(
    columns: NDArray[np.int64], curves: dict[Kind, NDArray[np.int64]], path: Path, title: str
) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MissingExtraError(
            f"drawing a .png needs matplotlib ({err}); install it with: pip install 'vramkit[viz]'"
        ) from err
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    gib = [curve / 2**30 for curve in curves.values()]
    if gib:
        colours = [_COLOURS[kind] for kind in curves]
        axes.stackplot(columns, gib, labels=[kind.value for kind in curves], colors=colours)
        axes.legend(loc="upper left", fontsize="small")
    axes.set(title=title, xlabel="event", ylabel="live memory (GiB)")
    axes.margins(x=0)
    figure.savefig(path, dpi=120)
