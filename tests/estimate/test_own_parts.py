"""vramkit's own tables and pools inside an estimated step are refused with advice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import vramkit
from vramkit.errors import UntraceableError

Step = Callable[[], Any]


def _made_on_the_gpu() -> Step:
    table = vramkit.nn.SparseEmbedding(None, 64, optimizer="adam", device="cuda")
    ids = torch.zeros(8, dtype=torch.int64, device="cuda")
    return lambda: table(ids).sum().backward()


def _made_on_the_cpu() -> Step:
    table = vramkit.nn.SparseEmbeddingBag(100, 64, optimizer="sgd")
    return lambda: table(torch.zeros(8, 1, dtype=torch.int64)).sum().backward()


def _made_outside() -> Step:
    ids = torch.zeros(8, dtype=torch.int64)
    return lambda: _OUTSIDE(ids).cuda().sum().backward()


_OUTSIDE = vramkit.nn.SparseEmbedding(None, 64, optimizer="adam")


@pytest.mark.parametrize("make_step", [_made_on_the_gpu, _made_on_the_cpu, _made_outside])
def test_tables_with_a_fused_optimizer(make_step: Callable[[], Step]) -> None:
    with pytest.raises(UntraceableError) as caught:
        vramkit.estimate(step=make_step)
    text = str(caught.value)
    assert f"at {__file__}:" in text
    assert "needs a vramkit.nn.SparseEmbedding with a fused optimizer, which has no fakes" in text
    assert "add table.stats().device_bytes of a table in use" in text


@pytest.mark.parametrize("options", [{}, {"device": "cuda"}, {"device": torch.device("cuda", 0)}])
def test_pools_of_the_gpu(options: dict[str, Any]) -> None:
    def make_step() -> Step:
        pool = vramkit.MemoryPool("1GiB", **options)
        return pool(lambda: torch.empty(8, device="cuda"))

    with pytest.raises(UntraceableError, match=r"test_own_parts.py:\d+ makes a MemoryPool of the"):
        vramkit.estimate(step=make_step)
    vramkit.MemoryPool("4MiB", device="cpu").close()


def test_pools_of_the_cpu_work() -> None:
    def make_step() -> Step:
        pool = vramkit.MemoryPool("4MiB", device="cpu")

        def step() -> None:
            with pool:
                torch.empty(1024, device="cuda")

        return step

    assert vramkit.estimate(step=make_step).peak_requested_bytes == 4096
