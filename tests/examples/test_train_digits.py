"""The example runs as it stands, and says what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_train_digits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_digits.py")],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MPLBACKEND": "Agg",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "vramkit memory pool, device cpu, 128.0 MiB" in done.stdout
    assert "losses as outside the pool, bit for bit: True" in done.stdout
    accuracy = re.search(r"accuracy on unseen digits: (0\.\d+|1\.0+)", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.97
    assert (tmp_path / "train_digits.png").read_bytes().startswith(b"\x89PNG")
