"""Turns, percentiles, and rows that can be traced to their code."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks._shared import harness
from benchmarks._shared.harness import Recorder, Row, interleave, summarize
from benchmarks._shared.provenance import Provenance

ORIGIN = Provenance(
    commit="0123456789ab",
    dirty=False,
    date="2026-01-02T03:04:05+00:00",
    device="Some CPU (R) x2",
    torch="2.13.0",
    cuda=None,
    driver=None,
    kernel="6.1",
    python="3.11.7",
)
MEASURED = "bench case metric value unit peer peer_value ratio repeats"
ORIGINATED = "device torch cuda driver commit date"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "provenance", lambda: ORIGIN)
    return tmp_path


def row(own: float, theirs: float) -> Row:
    peer = summarize([theirs])
    return Row("bench_x", "case", "step", "ms", summarize([own]), {"n": 1}, "peer", peer)


def test_summary_is_median_and_percentiles() -> None:
    summary = summarize([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    assert (summary.p20, summary.median, summary.p80, summary.repeats) == (2.0, 3.5, 5.0, 6)


def test_a_contestant_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to summarize"):
        summarize([])


def test_turns_alternate_and_each_round_starts_with_another_contestant() -> None:
    order: list[str] = []

    def contestant(name: str) -> Callable[[], int]:
        def take_turn() -> int:
            order.append(name)
            return len(order)

        return take_turn

    turns = interleave({name: contestant(name) for name in "abc"}, rounds=2, warm_up=1)
    assert "".join(order) == "abcbcacab"
    assert turns == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_a_recorded_row_carries_its_origin_and_its_ratio(results: Path) -> None:
    Recorder(record=True, allow_dirty=False).add(row(3.0, 4.0))
    (file,) = results.iterdir()
    assert file.name == "2026-01-02-some_cpu_r_x2-0123456789ab.jsonl"
    written = json.loads(file.read_text())
    assert {*MEASURED.split(), *ORIGINATED.split()} <= set(written)
    assert (written["value"], written["peer_value"], written["ratio"]) == (3.0, 4.0, 0.75)
    assert written["settings"] == {"n": 1, "kernel": "6.1", "python": "3.11.7"}


def test_rows_are_appended(results: Path) -> None:
    for _ in range(2):
        Recorder(record=True, allow_dirty=False).add(row(1.0, 2.0))
    (file,) = results.iterdir()
    assert len(file.read_text().splitlines()) == 2


def test_nothing_is_written_unless_asked_for(results: Path) -> None:
    Recorder(record=False, allow_dirty=False).add(row(1.0, 2.0))
    assert list(results.iterdir()) == []


def test_a_dirty_tree_is_refused_or_marked(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "provenance", lambda: replace(ORIGIN, dirty=True))
    with pytest.raises(RuntimeError, match=r"differs from commit 0123456789ab.*--allow-dirty"):
        Recorder(record=True, allow_dirty=False)
    Recorder(record=True, allow_dirty=True).add(row(1.0, 2.0))
    (file,) = results.iterdir()
    assert json.loads(file.read_text())["commit"] == "0123456789ab-dirty"
