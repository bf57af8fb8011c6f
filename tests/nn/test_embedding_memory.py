"""Tables whose allocator has no memory raise PyTorch's error, and stay as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vramkit
from vramkit.nn import SparseEmbedding, SparseEmbeddingCollection


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("joint", [True, False])
def test_a_full_pool_is_an_out_of_memory_error(training: bool, joint: bool) -> None:
    tables = {name: SparseEmbedding(None, 4096, optimizer="adam", seed=1) for name in "ab"}
    first = torch.arange(3)
    kept = [table(first).detach() for table in tables.values()]
    for table in tables.values():
        table.train(training)
    ids = torch.arange(2000)
    asked = tables if joint else {"a": tables["a"]}
    collection = SparseEmbeddingCollection(asked)
    with (
        vramkit.MemoryPool("4MiB", device="cpu"),
        pytest.raises(torch.OutOfMemoryError, match="an embedding table asked for memory"),
    ):
        collection(dict.fromkeys(asked, ids))
    for table, rows in zip(tables.values(), kept, strict=True):
        assert torch.equal(table.eval()(first), rows)
        table._table.check()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_lookup_without_memory_counts_nothing(max_norm: float | None) -> None:
    table: Any = SparseEmbedding(None, 4, optimizer="sgd", max_norm=max_norm)
    ids = torch.arange(100)
    for _ in range(2):
        table(ids)
    with vramkit.MemoryPool("2MiB", device="cpu"), pytest.raises(torch.OutOfMemoryError):
        table(torch.arange(700_000))
    before = table._table.facts()
    table(ids)
    after = table._table.facts()
    assert (after.lookups - before.lookups, after.hits - before.hits) == (100, 100)
    table._table.check()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 300), (torch.int8, 170)])
def test_what_a_row_takes_with_its_index(tables: str, dtype: torch.dtype, most: int) -> None:
    table = SparseEmbedding(None, 128, dtype=dtype, optimizer="rowwise_adagrad", seed=1)
    rows = 300_000
    for ids in torch.randperm(rows).split(50_000):
        table(ids)
    stats = table.stats()
    assert stats.rows_in_use == rows
    values = 128 * dtype.itemsize
    # Pages on the CPU have headers of another form, and the bound is that of tables on a GPU.
    assert values + 20 < stats.bytes / rows <= most * (1 if tables == "emulated" else 1.05)


# What the smallest table takes, with an index of few rows.
LEAST = {"cpu": 264 << 10, "emulated": 2060 << 10}


@pytest.mark.parametrize("num_embeddings", [None, 100_000])
@pytest.mark.parametrize("dim", [1, 4, 64])
def test_a_small_table_is_small(tables: str, num_embeddings: int | None, dim: int) -> None:
    table = SparseEmbedding(num_embeddings, dim, optimizer="sgd", seed=1)
    table(torch.arange(10))
    assert table.stats().bytes <= LEAST[tables]


def test_a_table_grows_by_a_32nd(tables: str) -> None:
    table = SparseEmbedding(None, 64, optimizer="sgd", seed=1)
    for first in range(0, 200_000, 2000):
        table(torch.arange(first, first + 2000))
        bytes_of_rows = (first + 2000) * (64 * 4 + 32)
        of_index = 23 * (first + 2000)
        assert table.stats().bytes <= (bytes_of_rows + LEAST[tables]) * 33 / 32 + of_index
