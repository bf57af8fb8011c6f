"""A collection does what its tables do one after the other, in one native call."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
from helpers.seeds import stress_seed
from helpers.tables import Histories, comparable, random_tables
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from vramkit.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    RowIndexError,
    TableFullError,
    TableUsageError,
)
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection
from vramkit.nn._embedding._faults import feature_at_fault

pytestmark = pytest.mark.usefixtures("tables")


def _of(tables: dict[str, Any], **more: Any) -> SparseEmbeddingCollection:
    return SparseEmbeddingCollection(tables, **more)


def _embedding(rows: int | None = None, dim: int = 4, **options: Any) -> SparseEmbedding:
    return SparseEmbedding(rows, dim, **({"optimizer": "sgd", "seed": 1} | options))


@pytest.mark.parametrize("number", range(6))
def test_random_histories_are_those_of_the_tables_alone(number: int) -> None:
    seed = stress_seed() + number
    chance = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(4):
        pairs = [random_tables(chance, lambda build: build()) for _ in range(chance.randint(1, 6))]
        histories = Histories(chance, pairs, "cpu")
        for _ in range(4):
            histories.step()
        histories.check()


@pytest.mark.parametrize("when_full", ["evict_lru", "evict_lfu"])
def test_the_same_rows_are_given_up(when_full: Any) -> None:
    options: Any = {"optimizer": "adam", "seed": 2, "budget": "16KiB", "when_full": when_full}
    pairs = [[SparseEmbedding(None, dim, **options) for _ in range(2)] for dim in (4, 8, 8)]
    features = {"a": "0", "b": "1", "c": "2", "d": "1"}
    tables = _of({str(i): pair[0] for i, pair in enumerate(pairs)}, features=features)
    for _ in range(20):
        ids = {feature: torch.randint(400, (90,)) for feature in features}
        joint = tables(ids)
        alone = {feature: pairs[int(name)][1](ids[feature]) for feature, name in features.items()}
        for outputs in (joint, alone):
            sum(output.square().sum() for output in outputs.values()).backward()
    for first, second in pairs:
        assert first.stats() == second.stats()
        assert first.stats().evictions > 0
        for name, value in comparable(first).items():
            assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("tables_count", [2, 33])
def test_one_call_looks_up_and_one_updates(tables_count: int) -> None:
    tables = {str(number): _embedding() for number in range(tables_count)}
    collection = _of(tables, features={name: name for name in tables} | {"again": "1"})
    ids = torch.tensor([1, 2, 1])
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(2):
            found = collection(dict.fromkeys(collection.features, ids))
            sum(rows.sum() for rows in found.values()).backward()
        with torch.no_grad():
            collection(dict.fromkeys(collection.features, ids))
    prefixes = ("vramkit::", "emulated_")
    names = [functools.reduce(str.removeprefix, prefixes, event.name) for event in seen.events()]
    called = [name for name in names if name.startswith("tables_")]
    assert called == [*2 * ["tables_insert", "tables_update"], "tables_read"]
    steps = [table.state_dict()["counters"][0] for table in tables.values()]
    assert steps == [2] * tables_count


def test_tables_in_many_shapes_share_a_call() -> None:
    plain = SparseEmbedding(9, 4)
    tables = {
        "plain": plain,
        "wide": _embedding(dim=260, dtype=torch.bfloat16),
        "odd": _embedding(dim=3, dtype=torch.int8, optimizer="adam"),
        "bag": SparseEmbeddingBag(9, 8, mode="max", optimizer="adam", seed=1),
        "frozen": _embedding(9).requires_grad_(False),
    }
    ids = torch.tensor([[1, 2], [3, 3]])
    inputs = {name: (ids,) if name == "bag" else ids for name in tables}
    found = _of(tables)(inputs)
    shapes = {name: tuple(output.shape) for name, output in found.items()}
    assert shapes == {
        "plain": (2, 2, 4),
        "wide": (2, 2, 260),
        "odd": (2, 2, 3),
        "bag": (2, 8),
        "frozen": (2, 2, 4),
    }
    assert not found["frozen"].requires_grad
    found["plain"].sum().backward()
    assert plain.weight.grad is not None
    assert tables["wide"].stats().rows_in_use == 3
    assert tables["frozen"].stats().rows_in_use == 0


@pytest.mark.parametrize(
    ("bad", "ids", "error"),
    [("fixed", [1, 9], RowIndexError), ("full", list(range(3000)), TableFullError)],
)
def test_an_error_in_one_table_gives_no_table_rows(bad: str, ids: list[int], error: Any) -> None:
    tables = {
        "first": _embedding(),
        "fixed": _embedding(9),
        "full": _embedding(budget="16KiB"),
        "last": _embedding(),
    }
    collection = _of(tables)
    good = {name: torch.tensor([1, 2]) for name in tables}
    sum(rows.sum() for rows in collection(good).values()).backward()
    before = {name: table.state_dict() for name, table in tables.items()}
    fresh = {name: torch.tensor([3, 4]) for name in tables}
    with pytest.raises(error, match=rf"^feature '{bad}' of table '{bad}': "):
        collection(fresh | {bad: torch.tensor(ids)})
    for name, table in tables.items():
        state = table.state_dict()
        for part in ("keys", "rows"):
            assert torch.equal(state[part], before[name][part]), (name, part)
        assert table._table is not None
        table._table.check()
    assert collection(fresh)["last"].shape == (2, 4)
    assert tables["first"].stats().rows_in_use == 4


def test_a_failed_backward_leaves_nothing_behind() -> None:
    tables = _of({"a": _embedding(lr=1.0), "b": _embedding(lr=1.0)})
    ids = torch.tensor([1])
    before = {name: rows.detach().clone() for name, rows in tables({"a": ids, "b": ids}).items()}

    def fail(_grad: torch.Tensor) -> None:
        raise KeyError("stop")

    scale = torch.zeros(4, requires_grad=True)
    scale.register_hook(fail)
    found = tables({"a": ids, "b": ids})
    with pytest.raises(KeyError):
        (found["a"] + found["b"] + scale).sum().backward()
    del found
    for name, rows in tables.eval()({"a": ids, "b": ids}).items():
        assert torch.equal(rows, before[name])


def test_hooks_of_a_table_run() -> None:
    tables = _of({"a": _embedding(), "b": _embedding()})
    seen: list[Any] = []
    tables.tables["a"].register_forward_hook(lambda _module, args, _output: seen.append(args))
    ids = torch.tensor([1])
    tables({"a": ids, "b": ids})
    assert [args[0] is ids for args in seen] == [True]


def test_ddp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = _of({"a": _embedding(), "b": _embedding()})
    monkeypatch.setattr(DistributedDataParallel, "_active_ddp_module", tables)
    with pytest.raises(TableUsageError, match="build it with optimizer=None"):
        tables(dict.fromkeys("ab", torch.tensor([1])))


def test_inputs_that_do_not_fit() -> None:
    tables = _of({"a": _embedding(9), "b": SparseEmbeddingBag(9, 4, optimizer="sgd")})
    ids = torch.tensor([1, 2])
    cases: list[tuple[Any, Any, str]] = [
        ({"a": ids}, InvalidArgumentError, r"must be \['a', 'b'\], got \['a'\]"),
        ({"a": ids, "b": ids}, InvalidArgumentError, "1-D ids need 1-D offsets"),
        ({"a": ids.float(), "b": ids[None]}, ArgumentTypeError, "int64 or int32"),
        ({"a": ids, "b": ids.to("meta")[None]}, InvalidArgumentError, "the ids are on meta"),
        ({"a": ids, "b": (ids, ids)}, InvalidArgumentError, "must begin with 0|begin with 0"),
    ]
    for inputs, error, text in cases:
        with pytest.raises(error, match=text):
            tables(inputs)
    assert tables.tables["a"].stats().rows_in_use == 0  # type: ignore[operator]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("feature", "wrong", "error", "text"),
    [
        ("bought", torch.tensor([2, 73]), RowIndexError, "got id 73, the table has rows 0 to 49"),
        ("bought", torch.tensor([-1]), RowIndexError, "got id -1, the table"),
        ("bought", torch.tensor([0.5]), ArgumentTypeError, "ids must be int64 or int32"),
        ("title", torch.tensor([1]), InvalidArgumentError, "1-D ids need 1-D offsets"),
        ("title", (torch.tensor([1]), torch.tensor([1])), InvalidArgumentError, "offsets must be"),
        ("title", (torch.arange(4), torch.tensor([0, 3, 2])), InvalidArgumentError, "not decrease"),
        ("title", (torch.arange(4), torch.tensor([0, 9])), InvalidArgumentError, "from 0 to 9"),
        ("ends", (torch.arange(4), torch.tensor([0, 3])), InvalidArgumentError, "last offset must"),
    ],
)
def test_errors_name_the_feature(
    feature: str, wrong: Any, error: Any, text: str, training: bool
) -> None:
    tables = _of(
        {
            "item": _embedding(50),
            "word": SparseEmbeddingBag(50, 4, optimizer="sgd"),
            "last": SparseEmbeddingBag(50, 4, optimizer="sgd", include_last_offset=True),
        },
        features={"seen": "item", "bought": "item", "title": "word", "ends": "last"},
    ).train(training)
    good: dict[str, Any] = {
        "seen": torch.tensor([1]),
        "bought": torch.tensor([2, 3]),
        "title": (torch.tensor([1, 2]), torch.tensor([0, 1])),
        "ends": (torch.tensor([1, 2]), torch.tensor([0, 2])),
    }
    table = tables.features[feature]
    with pytest.raises(error, match=rf"^feature '{feature}' of table '{table}': .*{text}"):
        tables(good | {feature: wrong})
    assert len(tables(good)) == 4


@pytest.mark.parametrize("when_full", ["error", "evict_lru"])
def test_full_tables_name_the_feature(when_full: Any) -> None:
    cache = SparseEmbedding(None, 4, optimizer="sgd", budget="16KiB", when_full=when_full)
    tables = _of({"open": _embedding(), "cache": cache}, features={"a": "open", "b": "cache"})
    capacity = cache.stats().capacity
    assert capacity is not None
    ids = torch.arange(capacity)
    assert tables({"a": torch.arange(3000), "b": ids})["b"].shape == (capacity, 4)
    # A table that evicts has room for other ids, and one that does not for the same.
    wanted = torch.arange(capacity + 1) if when_full == "evict_lru" else torch.tensor([-5])
    with pytest.raises(TableFullError, match=r"^feature 'b' of table 'cache': the table is full"):
        tables({"a": torch.arange(3000), "b": wanted})


def test_errors_of_a_table_with_hooks_name_the_feature() -> None:
    items = _embedding(50)
    items.register_forward_hook(lambda *_: None)
    with pytest.raises(RowIndexError, match=r"^feature 'a' of table 'a': index out of range"):
        _of({"a": items})({"a": torch.tensor([50])})


def test_errors_of_a_plain_weight_have_a_note_with_the_feature() -> None:
    both = SparseEmbeddingCollection({"a": SparseEmbedding(5, 2)}, features={"seen": "a"})
    with pytest.raises(IndexError) as caught:
        both({"seen": torch.tensor([9])})
    assert caught.value.__notes__ == ["in feature 'seen' of table 'a'"]


def test_errors_about_another_call_stay_as_they_are() -> None:
    err, request = RowIndexError("of an earlier call"), _embedding(50)._request(torch.tensor([1]))
    assert feature_at_fault(err, [("a", request[0])]) is None
