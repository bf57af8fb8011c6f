"""PyTorch's parts and vramkit's learn the same in the recommender, and work with each other."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.recommender import losses, take_rows

import vramkit
from examples.train_recommender import Training, make_clicks, sizes
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag

ROOT = Path(__file__).resolve().parents[2]
ROWS, BATCH, SIDE = 500, 64, 8


@pytest.fixture(scope="module")
def clicks() -> Any:
    return make_clicks(4096, ROWS, SIDE)


@pytest.fixture
def pool() -> Iterator[vramkit.MemoryPool]:
    made = vramkit.MemoryPool("512MiB", device="cpu")
    with made:
        yield made


def make(clicks: Any, **choice: Any) -> Training:
    return Training(clicks, ROWS, BATCH, device="cpu", workers=0, **choice)


def test_both_train_alike(clicks: Any, pool: vramkit.MemoryPool) -> None:
    """Equal rows and batches. Fused layers round differently in bfloat16 (eps 0.008), and Adam's
    first steps have the size of the learning rate whatever the gradient's, so that losses drift
    apart by less than 0.01."""
    stock, own = make(clicks, stock=True), make(clicks)
    take_rows(own, stock)
    expected = losses(stock, 8)
    torch.testing.assert_close(losses(own, 8), expected, rtol=0, atol=0.01)
    assert own.loader.stats().path == "arrays"
    assert vramkit.nn.fusion_report(own.model.tower).fused
    assert pool.stats().live_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_learn(clicks: Any, dtype: torch.dtype) -> None:
    """With other initial rows, PyTorch's last losses spread over 0.007 (four seeds)."""
    found = {}
    for stock in (True, False):
        course = losses(make(clicks, stock=stock, row_dtype=dtype), 60)
        found[stock] = course[-10:].mean().item()
        assert found[stock] < course[:5].mean().item() - 0.05
    assert found[False] == pytest.approx(found[True], abs=0.02)


def test_a_checkpoint_of_all_parts_resumes(clicks: Any, pool: vramkit.MemoryPool) -> None:
    training = make(clicks)
    losses(training, 3)
    state = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizers[0].state_dict(),
        "loader": training.loader.state_dict(),
    }
    state = copy.deepcopy(state)
    expected = losses(training, 3)
    again = make(clicks)
    again.model.load_state_dict(state["model"])
    again.optimizers[0].load_state_dict(state["optimizer"])
    again.loader.load_state_dict(state["loader"])
    torch.testing.assert_close(losses(again, 3), expected)


def test_a_copy_of_the_model_is_independent(clicks: Any, pool: vramkit.MemoryPool) -> None:
    training = make(clicks)
    losses(training, 2)
    copied = copy.deepcopy(training.model).eval()
    batch = next(iter(make(clicks).loader))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = copied(batch)
        with torch.enable_grad():
            losses(training, 2)
        torch.testing.assert_close(copied(batch), before, rtol=0, atol=0)
        assert not torch.equal(training.model.eval()(batch), before)


def test_batches_with_offsets() -> None:
    """Bags of any length: a collate function makes ids and offsets, in a dict of the features."""

    def collate(samples: list[list[int]]) -> dict[str, Any]:
        ids = [torch.tensor(sample) for sample in samples]
        starts = torch.tensor([0, *map(len, samples[:-1])]).cumsum(0)
        last = torch.tensor([max(each) for each in samples])
        return {"item": last, "seen": (torch.cat(ids), starts)}

    samples = [list(range(1, 2 + number % 5)) for number in range(32)]
    tables = vramkit.nn.SparseEmbeddingCollection(
        {
            "item": SparseEmbedding(None, 8, optimizer="adam"),
            "seen": SparseEmbeddingBag(None, 8, optimizer="adam"),
        }
    )
    with vramkit.MemoryPool("64MiB", device="cpu"):
        loader = vramkit.DataLoader(samples, batch_size=8, collate_fn=collate)
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16):
                found = tables(batch)
            assert {name: rows.shape for name, rows in found.items()} == {
                "item": (8, 8),
                "seen": (8, 8),
            }
            sum(rows.sum() for rows in found.values()).backward()
        loader.close()
    assert sorted(tables.tables["seen"].keys().tolist()) == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["--stock", "--vramkit"])
def test_the_script_runs(variant: str) -> None:
    choice = {"device": "cpu", "steps": 12, "batch": 32, "rows": 500, "samples": 512, "side": 8}
    options = [f"--{name}={value}" for name, value in choice.items()]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_recommender.py"), variant, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"step 12: loss 0\.\d{3}\n[\d,]+ samples a second\n", done.stdout)
    assert ("MiB of the pool in use" in done.stdout) == (variant == "--vramkit")


def test_ids_and_labels_are_as_described(clicks: Any) -> None:
    parts = clicks.datasets
    for number, rows in enumerate(sizes({"user": 1.0, "hour": 0.01}, ROWS).values()):
        ids = parts["ids"][:, (0, 7)[number]]
        assert 1 <= ids.min() <= ids.max() < rows
    empty = parts["histories"] == 0
    assert empty.any()
    assert not empty[:, :, 0].any()
    assert 0.4 < parts["label"].mean() < 0.6
