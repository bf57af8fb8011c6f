"""The benchmark of estimates: its table of convolutions, and the alignment with traces."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks._shared.harness import Row
from benchmarks.estimate import __main__, others_run, own_run
from benchmarks.estimate.align import differences
from benchmarks.estimate.convolutions import TABLE, workspaces
from benchmarks.estimate.others import GUESSED, OTHERS
from benchmarks.estimate.others_more import MORE
from benchmarks.estimate.others_text import TEXT
from benchmarks.estimate.others_vision import VISION
from benchmarks.estimate.own import OWN
from benchmarks.estimate.parallel import PARALLEL
from vramkit.estimate import estimate

_CASE = "conv x[2, 8, 9, 9] w[16, 8, 3, 3] s[1, 1] p[1, 1] g1 float32"


def test_workspaces_are_read_from_recorded_calls() -> None:
    lines = [
        json.dumps({"op": f"{_CASE} nchw fwd", "seq": [9000, 700, -700]}),
        json.dumps({"op": f"{_CASE} nchw bwd", "seq": [8000, 600, -600, 500, -9000]}),
        json.dumps({"op": f"{_CASE} cl bias bwd", "seq": [8000, 500, 64, -64, -64]}),
        json.dumps({"op": "sum (3,) over (0,) float32", "seq": [4]}),
    ]
    assert workspaces(lines) == {
        "2x8x9x9 16x8x3x3 1,1,1,1,1,1 1 float32 nchw": [700, 600, 0],
        "2x8x9x9 16x8x3x3 1,1,1,1,1,1 1 float32 nhwc": [0, 0, 0],
    }


def test_the_table_that_is_shipped_has_three_columns() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert "H100" in table["source"]
    assert all(len(row) == 3 for row in table["convolutions"]["workspaces"].values())


def test_the_first_difference_is_named() -> None:
    found = estimate(torch.nn.Linear(64, 64), torch.empty(8, 64), steps=1).trace
    recorded = [block.size_bytes for block in found.blocks]
    assert differences(found, recorded, limit=5) == []
    [line] = differences(found, [*recorded[:-1], 12345], limit=5)
    assert "recorded [12345]" in line
    assert "predicted 1,048,576 B of cuBLASLt (Linear" in line


def test_the_truth_is_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.estimate", "--truth", str(tmp_path)])
    assert __main__.main() == 75
    assert "nothing to compare with" in capsys.readouterr().out


def test_each_step_is_named_by_its_function_and_described() -> None:
    parts = (VISION, TEXT, MORE)
    assert len(OTHERS) == sum(len(part) for part in parts)
    assert not set(OTHERS) & set(OWN)
    for steps in (OWN, OTHERS, PARALLEL):
        for name, make in steps.items():
            assert make.__name__ == name
            assert make.__doc__, f"{name} has no docstring"
    assert set(GUESSED) <= set(OTHERS)


def test_a_model_of_others_is_estimated_as_it_was_measured() -> None:
    found = others_run.predict("muon", "h200", "refuse")
    measured = {"requested": 131_072_004, "allocated": 131_072_512, "reserved": 146_800_640}
    assert {column: found[column] for column in own_run.COLUMNS} == measured


def test_a_model_whose_library_is_missing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    found = others_run.predict("swin", "h200", "refuse")
    assert found == {"model": "swin", "skipped": "timm is not installed"}


def test_the_models_of_others_run_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> list[dict[str, object]]:
        calls.append(words[2:])
        _, _, what, name, *_ = words
        if (what, name) == ("measure", "lstm"):
            raise RuntimeError("-m ... failed:\nout of memory")
        if name == "gat":
            return [{"model": name, "skipped": "refused"}]
        return [{"model": name, "requested": len(calls), "unmeasured": []}]

    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(own_run, "run", run)
    monkeypatch.setattr(own_run, "nearest_target", lambda: "h200")
    monkeypatch.setattr(own_run, "calibrated_file", lambda folder, _: folder / "gpu.json")
    found = list(others_run.compare(tmp_path, ["gat", "deberta", "lstm"]))
    assert found[0] == {"model": "gat", "skipped": "refused"}
    assert found[2] == {"model": "lstm", "skipped": "measure failed: out of memory"}
    assert found[1]["guess"] == "allow"
    sizes = [found[1][part]["requested"] for part in ("predicted", "calibrated", "measured")]
    assert sizes == [2, 4, 5]
    file = str(tmp_path / "gpu.json")
    assert calls[3:5] == [
        ("predict", "deberta", "--target", file, "--guess", "allow"),
        ("measure", "deberta"),
    ]


@pytest.mark.parametrize("option", ["--own", "--others"])
def test_a_gpu_is_needed(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks.estimate", option])
    assert __main__.main() == 75
    assert "no CUDA device" in capsys.readouterr().out


def test_rows_carry_what_was_guessed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = dict.fromkeys(own_run.COLUMNS, 200)
    plain = {**sizes, "allocated": 190}
    figures = {"predicted": plain, "calibrated": sizes, "measured": sizes}
    skipped = {"model": "gat", "skipped": "refused"}
    compared = [skipped, {"model": "deberta", "guess": "allow", **figures}]
    rows: list[Row] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(others_run, "compare", lambda *_: iter(compared))
    recorder = SimpleNamespace(add=rows.append)
    monkeypatch.setattr(__main__, "_gpu_recorder", lambda *_: recorder)
    assert __main__.compare_others([], record=True, commit=None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| gat | refused | | | |",
        "| deberta | +0.000 | +0.000 | +0.000 | -5.000 |",
    ]
    assert [row.case for row in rows] == ["others deberta"] * 6
    assert [dict(row.settings) for row in rows[2:4]] == [
        {"calibrated": True, "guess": "allow"},
        {"calibrated": False, "guess": "allow"},
    ]
