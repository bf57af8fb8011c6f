"""Narrow rows learn as well as float32: words of the standard library's sources."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vramkit.nn import SparseEmbedding, SparseEmbeddingBag

WORDS, WIDTH = 2000, 32
STEPS, LAST = 300, 100
BATCH, SIDE, NEGATIVE = 512, 3, 6
LR = 0.02


def _text() -> Tensor:
    """The words of some modules as ids below WORDS; rare ones share the last."""
    words: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-m]*.py")):
        words += re.findall(r"[A-Za-z_]\w*", file.read_text(encoding="utf-8", errors="replace"))
    ids = {word: i for i, (word, _) in enumerate(Counter(words).most_common(WORDS - 1))}
    return torch.tensor([ids.get(word, WORDS - 1) for word in words])


def _last_loss(text: Tensor, contexts: nn.Module, targets: nn.Module, step_of: object) -> float:
    """The mean loss of the last steps of a continuous bag of words with negative samples."""
    draw = torch.Generator().manual_seed(1)
    around = torch.tensor([i for i in range(-SIDE, SIDE + 1) if i != 0])
    losses = []
    for _ in range(STEPS):
        middle = torch.randint(SIDE, len(text) - SIDE, (BATCH,), generator=draw)
        wrong = torch.randint(len(text), (BATCH, NEGATIVE), generator=draw)
        candidates = torch.cat([text[middle][:, None], text[wrong]], dim=1)
        mean = contexts(text[middle[:, None] + around]).float()
        scores = (targets(candidates).float() @ mean[:, :, None]).squeeze(2)
        wanted = torch.zeros_like(scores)
        wanted[:, 0] = 1
        loss = functional.binary_cross_entropy_with_logits(scores, wanted)
        loss.backward()
        if isinstance(step_of, torch.optim.Optimizer):
            step_of.step()
            step_of.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 1.3 * losses[-1], "nothing was learnt"
    return sum(losses[-LAST:]) / LAST


def _plain() -> tuple[nn.EmbeddingBag, nn.Embedding]:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(WORDS, WIDTH, mode="mean", sparse=True)
    words = nn.Embedding(WORDS, WIDTH, sparse=True)
    with torch.no_grad():
        bag.weight.mul_(0.3)
        words.weight.mul_(0.3)
    return bag, words


@pytest.mark.slow
def test_narrow_rows_reach_the_loss_of_float32() -> None:
    text = _text()
    bag, words = _plain()
    adam = torch.optim.SparseAdam([*bag.parameters(), *words.parameters()], lr=LR)
    wanted = _last_loss(text, bag, words, adam)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        bag, words = _plain()
        options = {"optimizer": "adam", "lr": LR, "dtype": dtype}
        narrow = SparseEmbeddingBag.from_embedding(bag, **options)
        found = _last_loss(text, narrow, SparseEmbedding.from_embedding(words, **options), None)
        assert abs(found / wanted - 1) < 0.01, f"{dtype}: {found:.4f} instead of {wanted:.4f}"
