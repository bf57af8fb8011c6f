"""Rows in host memory, cached or not, equal those of a table on one device."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from helpers.seeds import stress_seed
from helpers.tables import (
    DictTable,
    assert_same_history,
    assert_same_state,
    random_tables,
    sorted_by_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.nn import SparseEmbedding

pytestmark = pytest.mark.usefixtures("tables")

# Of tables with 4 values: one row on the device, a few, and more than the ids that occur.
_BUDGETS = (1800, 2100, 1 << 16)
PLACES: list[dict[str, Any]] = [
    {"placement": "host"},
    {"placement": "cached", "budget": "4KiB"},
    {"when_full": "spill", "budget": "4KiB"},
]


@pytest.mark.parametrize("number", range(4))
def test_random_histories_are_the_same(number: int) -> None:
    seed = stress_seed() + number
    chance = random.Random(seed)
    torch.manual_seed(seed % 2**63)
    for _ in range(12):
        pair = random_tables(chance, lambda build: build(), placed=True)
        assert_same_history(chance, *pair, device="cpu", placed=True)


_IDS = st.lists(st.integers(-40, 40), min_size=1, max_size=30)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("train"), _IDS, _IDS),
        st.tuples(st.sampled_from(["prefetch", "read", "save", "copy"]), _IDS, _IDS),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(
    steps=_STEPS,
    place=st.one_of(
        st.just({"placement": "host"}),
        st.builds(lambda size: {"placement": "cached", "budget": size}, st.sampled_from(_BUDGETS)),
        st.builds(lambda size: {"when_full": "spill", "budget": size}, st.sampled_from(_BUDGETS)),
    ),
    rows=st.sampled_from([None, 41]),
    seed=st.integers(0, 2**62),
)
def test_any_history_equals_a_dictionary(
    steps: list[tuple[str, list[int], list[int]]], place: Any, rows: int | None, seed: int
) -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.5, "seed": seed}
    table = SparseEmbedding(rows, 4, **options, **place)
    untrained = SparseEmbedding(rows, 4, **options).eval()
    model = DictTable(0.5)
    for kind, ids, others in steps:
        first = torch.tensor(ids if rows is None else [abs(key) for key in ids])
        second = torch.tensor(others if rows is None else [abs(key) for key in others])
        if kind == "train":
            _train(table, model, first, second, untrained)
        elif kind == "prefetch":
            table.prefetch(first)
        elif kind == "read":
            wanted = [model.rows.get(int(key), untrained(key)) for key in first]
            torch.testing.assert_close(table.eval()(first), torch.stack(wanted))
            table.train()
        elif kind == "copy":
            table = copy.deepcopy(table)
        else:
            again = SparseEmbedding(rows, 4, **options, **place)
            again.load_state_dict(table.state_dict())
            table = again
        assert table._table is not None
        table._table.check()
    assert sorted(table.keys().tolist()) == sorted(model.rows)


def _train(table: Any, model: DictTable, ids: Tensor, later: Tensor, untrained: Any) -> None:
    grads = torch.randn(len(ids), 4)
    output = table(ids)
    table.prefetch(later)
    torch.testing.assert_close(output, model.train(ids.tolist(), untrained(ids), grads))
    output.backward(grads)


@pytest.mark.parametrize("place", PLACES)
def test_checkpoints_move_between_placements(place: Any) -> None:
    table = SparseEmbedding(None, 4, optimizer="adam", seed=1, **place)
    plain = SparseEmbedding(None, 4, optimizer="adam", seed=1)
    for first in (0, 50, 20, 100):
        for module in (table, plain):
            module(torch.arange(first, first + 70)).square().sum().backward()
    for source, options in ((table, {}), (plain, place), (table, PLACES[1])):
        other = SparseEmbedding(None, 4, optimizer="adam", **options)
        other.load_state_dict(source.state_dict())
        assert_same_state(plain, other, 0, placed=True)
    for again in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        for module in (again, table):
            module(torch.arange(60, 200)).square().sum().backward()
        assert_same_state(table, again, 0, placed=True)
        table.load_state_dict(plain.state_dict())
    assert table.bfloat16()(torch.tensor([3])).dtype is torch.bfloat16


@pytest.mark.parametrize("place", PLACES)
def test_dumps_follow_a_table(place: Any) -> None:
    options: dict[str, Any] = {"optimizer": "adam", "seed": 1}
    table = SparseEmbedding(None, 4, **options, **place)
    copied = SparseEmbedding(None, 4, **options, **PLACES[1])
    mark = -1
    for first in (0, 50, 20, 200):
        table(torch.arange(first, first + 70)).sum().backward()
        dump = table.changes(mark)
        assert len(dump["keys"]) == 70
        mark = int(dump["counters"][1])
        copied.apply_changes(dump)
    assert_same_state(table, copied, 0, placed=True)


def test_rows_in_host_memory_are_evicted_too() -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "budget": "16KiB", "when_full": "evict_lru"}
    table = SparseEmbedding(None, 16, placement="host", **options)
    for first in range(0, 1000, 50):
        table(torch.arange(first, first + 50)).sum().backward()
    stats = table.stats()
    assert stats.evictions > 0
    assert stats.rows_in_use == stats.capacity
    assert stats.bytes == stats.device_bytes + stats.host_bytes <= 16 << 10
    assert set(range(950, 1000)) <= set(table.keys().tolist())


@pytest.mark.parametrize("place", PLACES)
def test_large_tables_are_dumped_in_parts(place: Any) -> None:
    table = SparseEmbedding(None, 1, optimizer="sgd", lr=1.0, init_std=0.0, **place)
    ids = torch.arange(150_000)
    table(ids).backward(ids.float()[:, None])
    state = sorted_by_key(table.state_dict())
    assert torch.equal(state["keys"], ids)
    assert torch.equal(state["rows"], -ids.float()[:, None])
    assert len(table.changes(int(state["counters"][1]))["keys"]) == 0


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"placement": "disk"}, InvalidArgumentError, "placement must be one of"),
        ({"placement": "cached"}, InvalidArgumentError, "'cached' needs a budget"),
        (
            {"placement": "cached", "budget": 9999, "when_full": "error"},
            InvalidArgumentError,
            "none is lost; leave when_full out",
        ),
        ({"when_full": "spill"}, InvalidArgumentError, "a table grows without a budget"),
        (
            {"placement": "host", "budget": 9999, "when_full": "spill"},
            InvalidArgumentError,
            "the rows are in host memory already",
        ),
        ({"placement": "host", "optimizer": None}, InvalidArgumentError, "pass optimizer='adam'"),
    ],
)
def test_placements_that_cannot_be_honoured(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        SparseEmbedding(9, 4, **({"optimizer": "sgd"} | options))


def test_prefetched_ids_that_do_not_fit() -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd", placement="cached", budget="4KiB")
    table(torch.arange(9)).sum().backward()
    table.prefetch(torch.tensor([[-1, 9, 2**40], [3, 4, 5]]))
    table.prefetch(torch.empty(0, dtype=torch.int64))
    with pytest.raises(ArgumentTypeError, match="int64 or int32"):
        table.prefetch(torch.tensor([1.0]))
    with pytest.raises(InvalidArgumentError, match="the ids are on meta"):
        table.prefetch(torch.ones(1, dtype=torch.int64, device="meta"))
    with pytest.raises(InvalidArgumentError, match="has a plain weight"):
        SparseEmbedding(9, 4).prefetch(torch.tensor([1]))
