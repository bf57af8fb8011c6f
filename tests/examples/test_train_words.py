"""The example learns from the standard library's sources with an open vocabulary."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_train_words(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_words.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\d\.\d+)", done.stdout)]
    assert len(losses) == 5
    assert losses[-1] < 0.5 * losses[0]
    different, rows = (
        int(found.replace(",", ""))
        for found in re.findall(r"([\d,]+) (?:different|rows in use)", done.stdout)
    )
    assert 0.9 * different < rows <= different
    assert done.stdout.count("near ") == 5
