"""The picture of the loader's benchmark shows the recorded rows."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.loader.picture import draw, lines


def row(case: str, metric: str, value: float, peer: str, peer_value: float) -> dict[str, Any]:
    origin = {"device": "Some CPU x2", "torch": "2.13.0"}
    return origin | {
        "case": case,
        "metric": metric,
        "value": value,
        "peer": peer,
        "peer_value": peer_value,
    }


ROWS = [
    row(f"python_images_workers_{workers}", metric, 10.0 * workers, peer, workers / 2)
    for workers in (8, 1)
    for metric in ("gigabytes_per_s", "cpu_s_per_gigabyte")
    for peer in ("torch", "spdl")
]


def test_lines_are_by_workers() -> None:
    other = [
        row("jpeg_workers_2", "gigabytes_per_s", 1.0, "torch", 1.0),
        row("python_images_workers_2", "first_batch", 1.0, "torch", 1.0),
    ]
    assert lines(ROWS + other, "gigabytes_per_s") == {
        "vramkit": {1: 10.0, 8: 80.0},
        "torch": {1: 0.5, 8: 4.0},
        "spdl": {1: 0.5, 8: 4.0},
    }


def test_the_same_rows_give_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    draw(ROWS, tmp_path / "a.svg")
    draw(ROWS, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "Some CPU x2" in text
    assert all(f">{loader}<" in text for loader in ("vramkit", "torch", "spdl"))


def test_without_rows_nothing_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="record these cases first"):
        draw([], tmp_path / "a.svg")
