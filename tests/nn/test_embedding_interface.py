"""Collections pass on what their tables offer, and wrong arguments are refused with advice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, TableFullError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection

pytestmark = pytest.mark.usefixtures("tables")


def _table(**options: Any) -> SparseEmbedding:
    return SparseEmbedding(None, 4, **{"optimizer": "sgd", "lr": 1.0, "seed": 3} | options)


def _collection() -> SparseEmbeddingCollection:
    tables = {"a": _table(), "b": _table(lr=0.5), "plain": SparseEmbedding(9, 4)}
    return SparseEmbeddingCollection(tables)


def _ids(*ids: int) -> dict[str, torch.Tensor]:
    return dict.fromkeys(("a", "b", "plain"), torch.tensor(ids))


def test_the_learning_rate_of_a_collection_is_that_of_its_tables() -> None:
    both = _collection()
    with pytest.raises(InvalidArgumentError, match=r"different learning rates, \{'a': 1.0, 'b': 0"):
        _ = both.lr
    both.lr = 0.25
    rates: list[Any] = [both.lr, both.tables["a"].lr, both.tables["b"].lr]
    assert rates == [0.25, 0.25, 0.25]
    with pytest.raises(InvalidArgumentError, match="lr must be finite and not negative"):
        both.lr = -1.0
    with pytest.raises(InvalidArgumentError, match="no table of the collection has one"):
        SparseEmbeddingCollection({"plain": SparseEmbedding(9, 4)}).lr = 0.1


def test_a_missing_learning_rate_is_a_missing_attribute() -> None:
    plain = SparseEmbedding(9, 2)
    two = {name: _table() for name in "ab"}
    for module in (plain, SparseEmbeddingCollection({"a": plain})):
        assert not hasattr(module, "lr")
        with pytest.raises(InvalidArgumentError, match="lr is for tables with a fused optimizer"):
            _ = module.lr
    collection = SparseEmbeddingCollection(two)
    collection.lr, two["a"].lr = 0.5, 0.25
    assert not hasattr(collection, "lr")
    with pytest.raises(InvalidArgumentError, match="different learning rates"):
        _ = collection.lr


def test_statistics_of_each_table() -> None:
    both = _collection()
    both(_ids(1, 2))
    assert {name: stats.rows_in_use for name, stats in both.stats().items()} == {
        "a": 2,
        "b": 2,
        "plain": 9,
    }


def test_gradients_of_several_passes_make_one_update() -> None:
    both, single = _collection(), _table()
    before = single(torch.tensor([1])).detach().clone()
    with both.accumulate():
        for _ in range(2):
            sum(rows.sum() for rows in both(_ids(1)).values()).backward()
        assert torch.equal(both(_ids(1))["a"], before)
    assert torch.equal(both(_ids(1))["a"], before - 2.0)
    assert torch.equal(both(_ids(1))["b"], before - 1.0)


def test_a_table_of_two_names_accumulates_once() -> None:
    table = _table()
    both = SparseEmbeddingCollection({"a": table, "b": table})
    with both.accumulate():
        pass


def test_prefetching_takes_what_forward_takes() -> None:
    bag = SparseEmbeddingBag(None, 4, optimizer="adam")
    both = SparseEmbeddingCollection({"a": _table(), "bag": bag, "plain": SparseEmbedding(9, 4)})
    ids = torch.tensor([1, 2])
    both.prefetch({"a": ids, "bag": (ids, torch.tensor([0, 1])), "plain": ids})
    with pytest.raises(InvalidArgumentError, match="the inputs must be"):
        both.prefetch({"a": ids})


def test_inputs_that_are_no_dict() -> None:
    with pytest.raises(ArgumentTypeError, match=r"a dict from each of \['a', .*, got Tensor"):
        _collection()(torch.tensor([1]))


def test_changes_since_a_dump() -> None:
    table = _table()
    table(torch.tensor([1, 2])).sum().backward()
    first = table.changes()
    table(torch.tensor([2])).sum().backward()
    for since in (first, table_mark(first)):
        assert table.changes(since=since)["keys"].tolist() == [2]


def table_mark(dump: dict[str, torch.Tensor]) -> int:
    return int(dump["counters"][1])


@pytest.mark.parametrize(
    ("since", "error", "text"),
    [
        (-3, InvalidArgumentError, "since must be an earlier dump, its mark, or -1.*got -3"),
        (9, InvalidArgumentError, "since is the mark 9, and the table is at .*dump of all rows"),
        (1 << 64, InvalidArgumentError, "a mark is at most 4294967295"),
        (1.0, ArgumentTypeError, r"an earlier dump or int\(dump\['counters'\]\[1\]\), got float"),
        ({"keys": torch.ones(1)}, InvalidArgumentError, "a dump without 'counters'; it has"),
    ],
)
def test_marks_that_are_none(since: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        _table().changes(since)


def test_what_is_no_dump_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"what changes\(\) returned, got NoneType"):
        _table().apply_changes(None)  # type: ignore[arg-type]


def test_changes_of_another_width() -> None:
    wide = SparseEmbedding(None, 8, optimizer="sgd")
    wide(torch.tensor([1]))
    with pytest.raises(InvalidArgumentError, match="embedding_dim=4 need"):
        _table().apply_changes(wide.changes())


def test_modules_of_the_other_kind() -> None:
    with pytest.raises(ArgumentTypeError, match=r"an nn.Embedding, got EmbeddingBag; SparseEmbed"):
        SparseEmbedding.from_embedding(nn.EmbeddingBag(3, 4))  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"an nn.EmbeddingBag, got Embedding; SparseEmbed"):
        SparseEmbeddingBag.from_embedding(nn.Embedding(3, 4))  # type: ignore[arg-type]


def test_gradients_that_are_not_finite_are_not_clipped_but_skipped() -> None:
    table, ids = _table(), torch.tensor([1])
    before = table(ids).detach().clone()
    with (
        pytest.warns(RuntimeWarning, match="skips an update: its gradients are not finite"),
        table.accumulate(max_norm=1.0),
    ):
        (table(ids) * float("inf")).sum().backward()
    assert torch.equal(table(ids), before)


@pytest.mark.parametrize(
    ("when_full", "advice"),
    [
        ("error", "raise budget, or choose when_full='evict_lru' and look up fewer distinct ids"),
        ("evict_lru", "raise budget, or look up fewer distinct ids at once than it holds"),
        ("evict_lfu", "raise budget, or look up fewer distinct ids at once than it holds"),
    ],
)
def test_a_full_table_does_not_advise_what_it_does(when_full: str, advice: str) -> None:
    table = _table(budget="16KiB", when_full=when_full)
    with pytest.raises(TableFullError, match=advice):
        table(torch.arange(5000))
