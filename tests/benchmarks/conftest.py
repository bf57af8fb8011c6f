"""The benchmarks are scripts: their modules are found when their folder is on the path."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state file of bench_pool_cuda that is not there yet."""
    return tmp_path / "state.jsonl"
