"""What the tests of the benchmarks share."""

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state file of the CUDA benchmark that is not there yet."""
    return tmp_path / "state.jsonl"
