"""The benchmark of estimates: its table of convolutions, and the alignment with traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.estimate.align import differences
from benchmarks.estimate.convolutions import TABLE, workspaces
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
    from benchmarks.estimate import __main__

    monkeypatch.setattr("sys.argv", ["benchmarks.estimate", "--truth", str(tmp_path)])
    assert __main__.main() == 75
    assert "nothing to compare with" in capsys.readouterr().out
