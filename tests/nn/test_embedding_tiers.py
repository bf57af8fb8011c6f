"""Tables with memory on two sides: which rows are where. CUDA's code, run on the host."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.seeds import stress_seed
from helpers.tables import assert_same_state
from torch import Tensor

from vramkit.errors import TableFullError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag
from vramkit.nn._embedding import _table

PLACES: list[dict[str, Any]] = [
    {"placement": "host"},
    {"placement": "cached", "budget": "4KiB"},
    {"when_full": "spill", "budget": "4KiB"},
]


class _Emulated:
    """The operators of tables on a GPU, which run on the host."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.ops.vramkit, f"emulated_{name}")


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_table, "_OPS", _Emulated())
    yield
    _pinned(-1)


def _lookups(table: Any) -> tuple[int, int]:
    facts = table._table.facts()
    return facts.lookups, facts.hits


def _hits(table: Any, ids: Tensor) -> int:
    """How many of the ids are found where a lookup is fast."""
    before = _lookups(table)
    with torch.no_grad():
        table(ids)
    return _lookups(table)[1] - before[1]


def _pinned(most: int) -> int:
    return int(torch.ops.vramkit.emulated_pinned_bytes(torch.empty(0), most))


def _cached(rows: int, **options: Any) -> tuple[SparseEmbedding, int]:
    """A table that has had so many rows, and how many of them fit on the device."""
    table = SparseEmbedding(
        None, 4, optimizer="adam", seed=1, placement="cached", budget="8KiB", **options
    )
    table(torch.arange(rows)).sum().backward()
    return table, _hits(table, torch.arange(rows))


def test_rows_are_where_they_should_be() -> None:
    ids = torch.arange(500)
    row_bytes = 500 * 4 * 12
    for place in ({}, *PLACES):
        table = SparseEmbedding(500, 4, optimizer="adam", **place)
        before = _pinned(-1)
        table(ids).sum().backward()
        stats = table.stats()
        assert stats.bytes == stats.device_bytes + stats.host_bytes
        assert _pinned(-1) - before == stats.host_bytes
        if not place:
            assert stats.host_bytes == 0
        else:
            assert row_bytes * (0.8 if "budget" in place else 1) < stats.host_bytes
            assert stats.device_bytes < (4 << 10) + 500 * 80


def test_a_batch_comes_to_the_device() -> None:
    table, capacity = _cached(400)
    assert 20 < capacity < 200
    for first in (100, 250, 0):
        ids = torch.arange(first, first + capacity)
        output = table(ids)
        assert _hits(table, ids) == capacity
        output.sum().backward()
    rows = table.stats().rows_in_use
    assert rows == 400
    assert _hits(table, torch.arange(400)) == capacity


def test_the_oldest_rows_go() -> None:
    table, capacity = _cached(400)
    half = capacity // 2
    batches = [torch.arange(first, first + half) for first in (0, 100, 200)]
    for ids in batches:
        table(ids)
    assert [_hits(table, ids) for ids in batches[1:]] == [half, half]
    assert _hits(table, batches[0]) <= capacity - 2 * half


def test_evaluation_moves_nothing() -> None:
    table, capacity = _cached(400)
    keys = table.keys()
    for _ in range(2):
        assert _hits(table, torch.arange(400)) == capacity
    assert torch.equal(table.keys(), keys)


def test_a_batch_larger_than_the_cache_is_trained_in_place() -> None:
    table, _ = _cached(400)
    plain = SparseEmbedding(None, 4, optimizer="adam", seed=1)
    plain(torch.arange(400)).sum().backward()
    for _ in range(3):
        for module in (table, plain):
            module(torch.arange(0, 1200, 3)).square().sum().backward()
    assert_same_state(plain, table, 0, placed=True)


def test_prefetched_rows_are_there() -> None:
    table, capacity = _cached(400)
    ids = torch.arange(300, 300 + capacity // 2)
    now = torch.arange(capacity // 2)
    output = table(now)
    table.prefetch(ids)
    assert _hits(table, ids) == len(ids)
    assert _hits(table, now) == len(now)
    output.sum().backward()
    before = _lookups(table)
    table(ids)
    after = _lookups(table)
    assert after[1] - before[1] == after[0] - before[0] == len(ids)


def test_hit_rates_tell_of_the_device() -> None:
    table, capacity = _cached(400)
    again = copy.deepcopy(table).eval()
    again.load_state_dict(table.state_dict())
    again(torch.arange(400))
    assert again.stats().hit_rate == capacity / 400
    bag = SparseEmbeddingBag(None, 4, optimizer="adam", placement="cached", budget="8KiB").eval()
    bag.load_state_dict(table.state_dict())
    bag(torch.arange(400).view(40, 10))
    assert bag.stats().hit_rate == capacity / 400
    spilled = SparseEmbedding(None, 4, optimizer="sgd", when_full="spill", budget="4KiB")
    spilled(torch.arange(400))
    with torch.no_grad():
        spilled(torch.arange(400))
    assert spilled.stats().hit_rate == 0.5


def test_repeated_runs_place_rows_alike() -> None:
    batches = [torch.randint(300, (200,)) for _ in range(8)]
    keys = []
    for _ in range(2):
        table, _ = _cached(10)
        for ids in batches:
            table(ids).sum().backward()
            table.prefetch(ids.flip(0)[:50])
        keys.append(table.keys())
    assert torch.equal(*keys)


@pytest.mark.parametrize("place", PLACES)
def test_memory_that_cannot_be_locked(place: Any) -> None:
    table = SparseEmbedding(None, 4, optimizer="adam", **place)
    table(torch.arange(200)).sum().backward()
    before = table.state_dict()
    _pinned(_pinned(-1))
    with pytest.raises(TableFullError, match="of host memory for rows: the test's limit"):
        table(torch.arange(100_000))
    state = table.state_dict()
    for name in ("keys", "rows", "exp_avg"):
        assert torch.equal(state[name], before[name]), name
    _pinned(-1)
    table(torch.arange(100_000)).sum().backward()
    assert table.stats().rows_in_use == 100_000


def test_tables_give_their_memory_back() -> None:
    before = _pinned(-1)
    for _ in range(20):
        for place in PLACES:
            table: Any = SparseEmbeddingBag(None, 8, optimizer="sgd", **place)
            table(torch.arange(3000).view(30, 100)).sum().backward()
            del table
    assert _pinned(-1) == before


@pytest.mark.parametrize("lanes", [2, 32])
def test_lanes_that_share_a_row_agree(lanes: int) -> None:
    chance = random.Random(stress_seed())
    torch.manual_seed(chance.getrandbits(32))
    nothing = torch.empty(0)
    torch.ops.vramkit.emulated_lanes(nothing, lanes)
    try:
        plain, table = (
            SparseEmbedding(None, 12, optimizer="adam", seed=1, **place)
            for place in ({}, PLACES[1])
        )
        for _ in range(3):
            ids = torch.randint(90, (60,))
            for module in (plain, table):
                module(ids).square().sum().backward()
        # Rows are in other slots, so that their gradients may be added in another order.
        assert_same_state(plain, table, 1e-5, placed=True)
    finally:
        torch.ops.vramkit.emulated_lanes(nothing, 1)
