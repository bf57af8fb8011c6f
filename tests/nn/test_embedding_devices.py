"""The code of CUDA's tables, run on the host, does what that of the CPU does."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers.seeds import stress_seed
from helpers.tables import assert_evicts_alike, assert_same_history, comparable, random_tables

from vramkit.errors import InvalidArgumentError, RowIndexError, UnsupportedDeviceError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag
from vramkit.nn._embedding import _table


class _Emulated:
    """The operators of tables on a GPU, which run on the host."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.ops.vramkit, f"emulated_{name}")


def _emulated(build: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_table, "_OPS", _Emulated())
        return build()


@pytest.mark.parametrize("number", range(8))
def test_random_histories_are_the_same(number: int) -> None:
    seed = stress_seed() + number
    chance = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(12):
        assert_same_history(chance, *random_tables(chance, _emulated), device="cpu")


@pytest.mark.parametrize("lanes", [2, 4, 32])
def test_lanes_that_share_a_row_agree(lanes: int) -> None:
    chance = random.Random(stress_seed())
    torch.manual_seed(chance.getrandbits(32))
    nothing = torch.empty(0)
    torch.ops.vramkit.emulated_lanes(nothing, lanes)
    try:
        for _ in range(3):
            assert_same_history(chance, *random_tables(chance, _emulated), device="cpu")
    finally:
        torch.ops.vramkit.emulated_lanes(nothing, 1)


@pytest.mark.parametrize("when_full", ["evict_lru", "evict_lfu"])
def test_the_same_rows_are_given_up(when_full: Any) -> None:
    chance = random.Random(stress_seed())
    torch.manual_seed(chance.getrandbits(32))
    options: dict[str, Any] = {"optimizer": "adam", "seed": 1, "when_full": when_full}
    first = SparseEmbedding(None, 8, budget="16KiB", **options)
    capacity = first.stats().capacity
    for extra in range(0, 1 << 15, 16):
        budget = 12000 + extra
        second = _emulated(lambda budget=budget: SparseEmbedding(None, 8, budget=budget, **options))
        if second.stats().capacity == capacity:
            break
    assert_evicts_alike(chance, first, second, device="cpu")


def test_an_update_of_several_lookups() -> None:
    first = SparseEmbeddingBag(None, 8, mode="mean", optimizer="adam", seed=2, padding_idx=1)
    second = _emulated(
        lambda: SparseEmbeddingBag(None, 8, mode="mean", optimizer="adam", seed=2, padding_idx=1)
    )
    for _ in range(3):
        batches = [torch.randint(20, (4, width)) for width in (3, 1, 30)]
        for table in (first, second):
            with table.accumulate(max_norm=0.7):
                sum(table(ids).square().sum() for ids in batches).backward()
                table(batches[0]).sum().backward()
    state = first.state_dict()
    for name, found in comparable(second).items():
        torch.testing.assert_close(found, state[name])


def test_devices_that_have_no_tables() -> None:
    with pytest.raises(UnsupportedDeviceError, match="not on xpu"):
        SparseEmbedding(None, 4, optimizer="sgd", device="xpu")
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedDeviceError, match="PyTorch finds no CUDA device"):
            SparseEmbedding(None, 4, optimizer="sgd", device="cuda")
    table = SparseEmbedding(None, 4, optimizer="sgd")
    with pytest.raises(InvalidArgumentError, match="the ids are on meta, the table is on cpu"):
        table(torch.ones(2, dtype=torch.int64, device="meta"))


def test_a_refused_batch_changes_no_row() -> None:
    table = _emulated(lambda: SparseEmbedding(9, 4, optimizer="sgd"))
    table(torch.tensor([1, 2])).sum().backward()
    before = table.state_dict()
    with pytest.raises(RowIndexError, match="got id 9"):
        table(torch.tensor([3, 9]))
    for name in ("keys", "rows"):
        assert torch.equal(table.state_dict()[name], before[name])
