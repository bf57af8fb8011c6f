"""Fixed tables index ids directly where that is smaller, and stay within their budgets."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers.seeds import stress_seed

from vramkit.nn import SparseEmbedding

pytestmark = pytest.mark.usefixtures("tables")


@pytest.mark.parametrize("when_full", ["evict_lru", "evict_lfu"])
def test_fixed_tables_stay_within_their_budgets(when_full: Any) -> None:
    chance = random.Random(stress_seed())
    torch.manual_seed(chance.getrandbits(32))
    for _ in range(12):
        rows, dim = chance.choice([50, 300, 1000, 20_000]), chance.choice([1, 4, 16])
        budget = chance.choice([8_000, 16_384, 100_000, 1 << 20])
        table = SparseEmbedding(rows, dim, optimizer="sgd", budget=budget, when_full=when_full)
        assert table._table is not None
        capacity = table.stats().capacity
        assert capacity is not None
        for _ in range(8):
            table(torch.randint(rows, (min(capacity, 200),))).sum().backward()
            assert table.stats().bytes <= budget
        table._table.check()


def test_fixed_tables_equal_open_ones_while_they_grow() -> None:
    options: Any = {"optimizer": "adam", "seed": 3}
    fixed, open_ = SparseEmbedding(3000, 8, **options), SparseEmbedding(None, 8, **options)
    for _ in range(20):
        ids = torch.randint(3000, (400,))
        for table in (fixed, open_):
            table(ids).square().sum().backward()
    ids = torch.arange(3000)
    assert torch.equal(fixed.eval()(ids), open_.eval()(ids))
    assert torch.equal(fixed.keys(), open_.keys())
