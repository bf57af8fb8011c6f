"""What would save memory."""

from __future__ import annotations

import pytest

from vramkit.errors import InvalidArgumentError
from vramkit.estimate.config import (
    Parallel,
    Serving,
    Training,
    advise,
    estimate_serving,
    estimate_training,
    read_model,
)


def test_changes_of_a_training_are_estimated_again() -> None:
    model, options = read_model("llama-3.1-8b"), Training(micro_batch=4)
    found = {each.change: each for each in advise(model, options)}
    before = estimate_training(model, options).total_bytes
    assert {"full recomputation", "8-bit AdamW", "micro-batch 2, twice as many"} <= set(found)
    changed = Training(micro_batch=4, optimizer="adamw-8bit")
    after = estimate_training(model, changed).total_bytes
    assert found["8-bit AdamW"].total_bytes == after
    assert found["8-bit AdamW"].saved_bytes == before - after
    # Nothing is gained where attention stores no scores, or on one replica.
    assert "FlashAttention" not in found
    assert "ZeRO 1" not in found
    assert "ZeRO 3 over 8 replicas" in found


def test_what_fits_comes_first() -> None:
    model = read_model("llama-3.1-8b")
    found = advise(model, Training(), budget="40GiB")
    order = [(not each.fits, -each.saved_bytes) for each in found]
    assert order == sorted(order)
    assert found[0].fits
    assert not found[-1].fits
    assert all(each.saved_bytes > 0 for each in found)


def test_changes_of_serving() -> None:
    model = read_model("gemma-2-9b")
    options = Serving(batch=8, context=8192, windows=False)
    found = {each.change: each for each in advise(model, options, target="l4")}
    assert {"cache in fp8", "weights in 4 bits (AWQ)", "batch 4", "windows freed"} <= set(found)
    halved = estimate_serving(model, Serving(batch=4, context=8192, windows=False), target="l4")
    assert found["batch 4"].total_bytes == halved.total_bytes
    assert found["tensor parallel 2"].total_bytes < found["cache in fp8"].total_bytes


def test_changes_that_cannot_work_are_left_out() -> None:
    # Fourteen heads cannot be split by four.
    options = Serving(parallel=Parallel(tensor=2))
    found = {each.change for each in advise(read_model("qwen2.5-0.5b"), options)}
    assert "tensor parallel 4" not in found
    with pytest.raises(InvalidArgumentError, match="3 ranks cannot split"):
        advise(read_model("qwen2.5-0.5b"), Serving(parallel=Parallel(tensor=3)))
