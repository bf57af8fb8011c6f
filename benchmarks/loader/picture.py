"""Throughput and CPU time against the number of workers, drawn from recorded rows.

python -m benchmarks.loader.picture benchmarks/results/<date>-<device>-<commit>.jsonl workers.svg
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CASES = "python_images_workers_"
PANELS = {"gigabytes_per_s": "GB/s", "cpu_s_per_gigabyte": "CPU seconds a GB"}
COLOURS = {
    "vramkit": "#1b6ca8",
    "torch": "#555555",
    "timm_style": "#d1495b",
    "tensordict": "#edae49",
    "spdl": "#66a182",
}
Line = dict[int, float]


def lines(rows: Iterable[dict[str, Any]], metric: str, cases: str = CASES) -> dict[str, Line]:
    """Return each loader's figures by the number of workers; later rows replace earlier ones.

    Raises:
        ValueError: No row has this metric of these cases.
    """
    found: dict[str, Line] = {}
    for row in rows:
        match = re.fullmatch(re.escape(cases) + r"(\d+)", row["case"])
        if match is None or row["metric"] != metric:
            continue
        workers = int(match[1])
        found.setdefault("vramkit", {})[workers] = row["value"]
        if row["peer"] is not None:
            found.setdefault(row["peer"], {})[workers] = row["peer_value"]
    if not found:
        raise ValueError(f"no row has {metric} of {cases}<workers>: record these cases first")
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the picture, as SVG or PNG by the ending of ``path``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The rows hold nothing that could be drawn.
    """
    found = {metric: lines(rows, metric) for metric in PANELS}
    import matplotlib as mpl

    mpl.use("Agg")
    # The same rows give the same file, with text that stays text.
    mpl.rcParams.update({"svg.hashsalt": "vramkit", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(9, 3.6))
    for axis, (metric, label) in zip(axes, PANELS.items(), strict=True):
        for loader, line in found[metric].items():
            workers = sorted(line)
            figures = [line[number] for number in workers]
            style = {"color": COLOURS.get(loader), "label": loader, "markersize": 5}
            axis.plot(workers, figures, "o-", linewidth=1.2, **style)
        axis.set_xticks(sorted(found[metric]["vramkit"]))
        axis.set_xlabel("worker processes")
        axis.set_ylabel(label)
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False)
    device = rows[0]["device"]
    figure.suptitle(f"Images of a Python dataset, {device}, torch {rows[0]['torch']}", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    is_svg = path.suffix == ".svg"
    figure.savefig(path, dpi=130, metadata={"Date": None} if is_svg else None)
    plt.close(figure)


def main() -> int:
    """Draw the picture of one results file."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("results", type=Path, help="a file of benchmarks/results")
    options.add_argument("picture", type=Path, help="where to write it: .svg or .png")
    chosen = options.parse_args()
    text = chosen.results.read_text(encoding="utf-8")
    draw([json.loads(line) for line in text.splitlines()], chosen.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
