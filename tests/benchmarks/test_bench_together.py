"""The benchmark of the four parts together: its search, its guesses, a run on the CPU."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.together.__main__ as bench
from benchmarks._shared.harness import Recorder, Row
from benchmarks.together.__main__ import CONTESTANTS, GIB, LIMIT_BYTES, ON_CPU, PEER, guesses
from benchmarks.together.child import Child
from benchmarks.together.search import largest, next_try
from benchmarks.together.worker import Spec

ROOT = Path(__file__).resolve().parents[2]


def up_to(limit: int, tried: list[int]) -> Callable[[int], bool]:
    def attempt(number: int) -> bool:
        tried.append(number)
        return number <= limit

    return attempt


@pytest.mark.parametrize("limit", [700, 930, 990, 1010, 1100])
def test_the_search_ends_within_two_per_cent(limit: int) -> None:
    tried: list[int] = []
    fits, fails = largest(up_to(limit, tried), 1000, most_tries=10)
    assert fits is not None
    assert fails is not None
    assert fits <= limit < fails <= fits * 1.021
    assert len(tried) == len(set(tried)) <= 10


def test_few_tries_find_a_number_that_fits() -> None:
    tried: list[int] = []
    fits, fails = largest(up_to(800, tried), 1000, most_tries=3)
    assert fits == max(number for number in tried if number <= 800)
    assert fails == min(number for number in tried if number > 800)
    assert largest(up_to(10, []), 1000, most_tries=2)[0] is None
    assert largest(up_to(5000, []), 1000, most_tries=1) == (1000, None)


def test_a_number_is_not_tried_when_enough_is_known() -> None:
    assert next_try({}, 100) == 100
    assert next_try({100: True, 102: False}, 100) is None
    assert next_try({100: True, 95: False}, 100) is None


def test_guesses_follow_from_peaks() -> None:
    own = {"peak_bytes": 3 * GIB, "table_bytes": 1 * GIB}
    theirs = {"peak_bytes": 8 * GIB, "table_bytes": 4 * GIB}
    base = replace(ON_CPU, batch=1024, rows=1000)
    start = guesses(base, {PEER: [theirs], "vramkit": [own]})
    limit = LIMIT_BYTES // GIB
    assert start["own_batch"] == (limit - 1) * 1024 // 2
    assert start["stock_batch"] == (limit - 4) * 1024 // 4
    assert start["stock_table"] == (limit - 4) * 1000 // 4


def test_a_child_says_that_memory_ran_out() -> None:
    spec = replace(ON_CPU, limit_bytes=4 << 20)
    with Child(spec, 120.0) as child:
        child.wait_ready()
        figures = child.turn()
    assert not figures["ok"]
    assert figures["out_of_memory"]


def test_a_child_that_fails_says_why() -> None:
    with Child(replace(ON_CPU, batch=0), 120.0) as child:
        child.wait_ready()
        with pytest.raises(RuntimeError, match="batch_size"):
            child.turn()


@pytest.mark.slow
def test_it_runs_on_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.together", "--device", "cpu", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(CONTESTANTS) - 1
    assert all("samples_per_s" in line and PEER in line for line in lines)


class _Rows(Recorder):
    """Keeps what would be recorded."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}

    def add(self, row: Row) -> None:
        self.rows[row.metric, str(row.settings.get("contestant"))] = row


def _trained(spec: Spec) -> dict[str, Any]:
    """What a process would say whose full tables take 1,000 bytes a row, and a sample 1 MiB."""
    table = 1000 * spec.rows if spec.stock or spec.fill else 1000
    peak = table + (spec.batch << 20)
    if peak > spec.limit_bytes > 0:
        return {"ok": False, "out_of_memory": "full"}
    figures = {"peak_bytes": peak, "reserved_bytes": peak, "device_bytes": peak + 1}
    return {"ok": True, "table_bytes": table, "rows_in_use": 10} | figures


def test_all_rows_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "once", _trained)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (140 * GIB, 141 * GIB))
    recorder = _Rows()
    report = bench.Report(recorder, {"batch": bench.ON_GPU.batch})
    base = replace(bench.ON_GPU, untimed=20, steps=30)
    turns: dict[str, list[dict[str, Any]]] = {}
    for name, change in CONTESTANTS.items():
        figures = _trained(replace(base, **change)) | {"loss": 0.5}
        turns[name] = [figures | {"samples_per_s": rate} for rate in (1.0, 2.0, 4.0)]
    bench.report_contest(report, base, turns)
    bench.search_all(report, base, turns)
    rows = recorder.rows
    assert rows["samples_per_s", "vramkit"].own.median == 3.0
    assert rows["device", "vramkit, bfloat16 rows"].own.median == pytest.approx(8, abs=0.01)
    batch, table = rows["largest_batch", "None"], rows["largest_table", "None"]
    assert batch.theirs is not None
    assert table.theirs is not None
    for value, taken in ((batch.own.median, 1000), (batch.theirs.median, 1000 * base.rows)):
        assert 0.98 < value / ((LIMIT_BYTES - taken) / (1 << 20)) <= 1
    assert table.own.median == 10 * bench.guesses(base, turns)["stock_table"]
    assert table.settings["does_not_fit"] is None
    full = rows["largest_table_all_rows", "None"]
    assert full.settings["bfloat16"]
    assert full.own.median == table.theirs.median
    assert len(rows) == 9


def test_an_attempt_that_fails_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(spec: Spec) -> dict[str, Any]:
        raise TimeoutError("a worker has not answered")

    monkeypatch.setattr(bench, "once", once)
    attempts = bench.Attempts(bench.ON_GPU, "rows")
    assert not attempts(1000)
    assert attempts.complaints == ["1000: a worker has not answered"]
