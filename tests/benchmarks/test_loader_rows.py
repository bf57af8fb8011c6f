"""The loader's benchmark records its rows with all that they depend on."""

from functools import partial
from typing import Any

import pytest

from benchmarks._shared.harness import Row
from benchmarks.loader import epochs, overlap
from benchmarks.loader.cases import Case
from benchmarks.loader.datasets import rows
from benchmarks.loader.text import pad
from benchmarks.loader.window import Window

CASE = Case(
    "arrays",
    partial(rows, 1 << 10, 256),
    {"batch_size": 64, "shuffle": True},
    peers=("timm_style",),
)


class FakeRecorder:
    """Keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)


def test_epochs_record_all_metrics_beside_each_peer() -> None:
    recorder: Any = FakeRecorder()
    epochs.bench_case(recorder, CASE, on_gpu=False, rounds=2, window_s=0.02)
    assert [row.metric for row in recorder.rows] == [metric for metric, _ in epochs.METRICS]
    assert {(row.case, row.peer) for row in recorder.rows} == {("arrays", "torch")}
    for row in recorder.rows:
        assert row.own.repeats == 2
        assert row.own.median > 0
        assert row.settings["batch_size"] == 64
        assert row.settings["window_s"] == 0.02
        assert row.settings["peers_absent"] == "timm_style needs a GPU"
        assert int(str(row.settings["batches_measured"])) >= 32


def test_overlap_records_exposed_milliseconds() -> None:
    recorder: Any = FakeRecorder()
    compute = overlap.make_compute(on_gpu=False)
    window = Window(2, 0.1)
    overlap.bench_case(recorder, CASE, compute, window, on_gpu=False, rounds=1)
    over, exposed = recorder.rows
    assert (over.metric, exposed.metric) == ("step_over_compute", "exposed_ms_a_step")
    assert over.own.median == pytest.approx(1, abs=0.5)
    assert float(str(exposed.settings["compute_ms"])) >= overlap.COMPUTE_MS


def test_functions_among_the_options_are_named() -> None:
    settings = epochs.settings_of({"collate_fn": pad, "batch_size": 3}, Window(1, 2), on_gpu=True)
    assert settings["collate_fn"] == "pad"
    assert settings["to"] == "cuda"
