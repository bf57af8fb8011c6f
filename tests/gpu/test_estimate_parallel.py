"""Estimates of a rank beside what ranks on two GPUs need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.estimate.parallel_run import compare

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def test_a_rank_needs_what_was_estimated(tmp_path: Path) -> None:
    for found in compare(tmp_path, 2, ["data_parallel_views", "fully_sharded"]):
        predicted, measured = found["predicted"], found["measured"]
        for key, most in (("allocated", 0.01), ("reserved", 0.03), ("device", 0.01)):
            error = predicted[key] / measured[key] - 1
            assert abs(error) <= most, (found["step"], key, predicted[key], measured[key])
