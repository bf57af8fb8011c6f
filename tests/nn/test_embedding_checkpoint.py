"""State dicts, incremental dumps and random histories of tables."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from helpers.tables import DictTable, comparable
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, TableFullError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag
from vramkit.nn._embedding import _checkpoint
from vramkit.nn._embedding._table import Table

pytestmark = pytest.mark.usefixtures("tables")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
OPTIMIZERS: list[Any] = ["sgd", "adagrad", "rowwise_adagrad", "adam"]


def _trained(seed: int = 1, **options: Any) -> SparseEmbedding:
    table = SparseEmbedding(None, 5, **({"optimizer": "adam", "seed": seed} | options))
    for ids in (torch.tensor([4, -2, 4]), torch.tensor([2**40, 4])):
        table(ids).square().sum().backward()
    return table


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_training_continues_exactly_from_a_state_dict(dtype: torch.dtype, optimizer: Any) -> None:
    table = _trained(optimizer=optimizer, dtype=dtype)
    state = {key: value.clone() for key, value in table.state_dict().items()}
    assert all(value.is_contiguous() for value in state.values())
    again = SparseEmbedding(None, 5, optimizer=optimizer, dtype=dtype, seed=99)
    again.load_state_dict(state)
    for module in (table, again):
        module(torch.tensor([4, 77])).square().sum().backward()
    for key, value in comparable(table).items():
        assert torch.equal(again.state_dict()[key], value), key
    untouched = torch.tensor([1234])
    assert torch.equal(again.eval()(untouched), table.eval()(untouched))


@pytest.mark.parametrize("into", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_row_types_load(dtype: torch.dtype, into: torch.dtype) -> None:
    table = _trained(dtype=dtype)
    other = SparseEmbedding(None, 5, optimizer="adam", dtype=into)
    other.load_state_dict(table.state_dict())
    ids = table.keys()
    tolerance = 0.03 if torch.int8 in (dtype, into) else 0.01
    found, wanted = other.eval()(ids).float(), table.eval()(ids).float()
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def test_plain_embeddings_load_and_are_made() -> None:
    plain = nn.Embedding(7, 3, padding_idx=2)
    nn.init.ones_(plain.weight)
    table = SparseEmbedding(7, 3, padding_idx=2, optimizer="adam")
    table.load_state_dict(plain.state_dict())
    assert torch.equal(table(torch.arange(7)), plain.weight)
    assert torch.equal(table.to_embedding().weight, plain.weight)
    bag = SparseEmbeddingBag(7, 3, optimizer="sgd")
    bag.load_state_dict(nn.EmbeddingBag(7, 3).state_dict())
    assert bag.to_embedding()(torch.tensor([[1, 2]])).shape == (1, 3)
    with pytest.raises(InvalidArgumentError, match="open id space has no last row"):
        _trained().to_embedding()


def test_a_smaller_budget_keeps_the_latest_rows() -> None:
    table = SparseEmbedding(None, 16, optimizer="sgd")
    for first in range(0, 1000, 50):
        table(torch.arange(first, first + 50))
    small = SparseEmbedding(None, 16, optimizer="sgd", budget="16KiB", when_full="evict_lru")
    small.load_state_dict(table.state_dict())
    capacity = small.stats().capacity
    assert capacity is not None
    assert small.stats().rows_in_use == capacity
    assert torch.equal(small.keys().sort().values[50:], torch.arange(1000 - capacity + 50, 1000))
    strict = SparseEmbedding(None, 16, optimizer="sgd", budget="16KiB")
    with pytest.raises(RuntimeError, match="the state has 1,000 rows, the budget of 16,384 bytes"):
        strict.load_state_dict(table.state_dict())


@pytest.mark.parametrize("when_full", ["evict_lru", "evict_lfu"])
def test_a_smaller_budget_keeps_the_right_rows_of_an_old_table(when_full: Any) -> None:
    table = SparseEmbedding(None, 16, optimizer="sgd")
    table(torch.arange(1000))
    state = dict(table.state_dict())
    # Stamps are unsigned: the newer half of the rows has those above 2**31.
    stamps = state["keys"][:, None].expand(-1, 3) + (1 << 31) - 500
    state["stamps"] = stamps.to(torch.int32)
    state["counters"] = torch.tensor([0, 1 << 32, 7]) - torch.tensor([0, 1, 0])
    small = SparseEmbedding(None, 16, optimizer="sgd", budget="16KiB", when_full=when_full)
    small.load_state_dict(state)
    capacity = small.stats().capacity
    assert small.keys().sort().values.tolist() == list(range(1000))[-capacity:]


def test_a_table_trains_after_a_load_that_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def take_name(new: Table, old: Table) -> None:
        of_tables(new, old)
        if new is not old:
            raise KeyboardInterrupt

    of_tables = Table.take_name
    table, ids = _trained(), torch.tensor([4])
    rows = table.eval()(ids)
    for owner, name, put in (
        (_checkpoint, "_load_part", interrupt),
        (Table, "resume", interrupt),
        (Table, "take_name", take_name),
        (Table, "leave_name", interrupt),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, put)
            with pytest.raises(KeyboardInterrupt):
                table.load_state_dict(_trained(seed=2).state_dict())
        if name != "leave_name":
            assert torch.equal(table.eval()(ids), rows)
        table.train()(ids).sum().backward()
        trained = table.eval()(ids)
        assert not torch.equal(trained, rows)
        rows = trained


def test_no_row_of_a_plain_embedding_is_evicted() -> None:
    plain = nn.Embedding(100, 4)
    options: Any = {"optimizer": "adam", "budget": 2048}
    text = r"the weight has 100 rows, the budget of 2,048 bytes holds \d+; raise budget"
    reason = ": no row of a plain weight has been used yet, so when_full='evict_.* cannot choose"
    for when_full in ("evict_lru", "evict_lfu"):
        table = SparseEmbedding(100, 4, when_full=when_full, **options)
        with pytest.raises(RuntimeError, match=text + reason):
            table.load_state_dict(plain.state_dict())
        with pytest.raises(TableFullError, match=text + reason):
            SparseEmbedding.from_embedding(plain, when_full=when_full, **options)
    with pytest.raises(TableFullError, match=f"{text}$"):
        SparseEmbedding.from_embedding(plain, **options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: state.pop("exp_avg"), "the state has no exp_avg"),
        (lambda state: state.update(rows=state["rows"][:, :2]), r"rows has shape \(3, 2\)"),
        (lambda state: state.update(keys=state["keys"] * 0), "the same key twice"),
        (lambda state: state.update(rows=state["rows"].long()), "rows has dtype torch.int64"),
        (lambda state: state.update(rows=[1.0]), r"rows must be a dense tensor .* got \[1.0\]"),
        (lambda state: state.update(rows=state["rows"].to("meta")), "torch.strided on meta"),
        (lambda state: state.update(keys=state["keys"].int()), "keys has dtype torch.int32"),
        (lambda state: state.update(keys=state["keys"].float()), "keys has dtype torch.float32"),
        (lambda state: state.update(keys=state["keys"][None]), r"keys has shape \(1, 3\)"),
        (lambda state: state.update(stamps=state["stamps"].float()), "stamps has dtype"),
        (lambda state: state.update(stamps=state["stamps"] + 9), "stamps has a row of time 1"),
        (lambda state: state.update(counters=state["counters"][:1]), "counters has shape"),
        (lambda state: state.update(counters=-state["counters"]), "the clock -4"),
        (lambda state: state.update(init_std=torch.tensor(float("nan"))), "init_std is nan"),
        (lambda state: state.update(exp_avg=state["exp_avg"].long()), "exp_avg has dtype"),
        (lambda state: state.update(history=torch.arange(3)), r"history has shape \(3,\)"),
        (lambda state: state.update(history=torch.ones(1, 2)), "history has dtype torch.float32"),
    ],
)
def test_damaged_states_change_nothing(change: Any, text: str) -> None:
    table, other = _trained(), _trained(seed=2)
    state = dict(other.state_dict())
    change(state)
    before = table.state_dict()
    with pytest.raises(RuntimeError, match=text):
        table.load_state_dict(state)
    for key, value in table.state_dict().items():
        assert torch.equal(before[key], value)


def test_keys_that_a_fixed_table_has_not() -> None:
    with pytest.raises(RuntimeError, match="got id"):
        SparseEmbedding(5, 5, optimizer="adam").load_state_dict(_trained().state_dict())


def test_missing_tables_are_named_as_in_torch() -> None:
    model = nn.Sequential(SparseEmbedding(5, 5, optimizer="sgd"))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*0\.keys"):
        model.load_state_dict({})
    more = model.state_dict() | {"0.colour": torch.tensor(1)}
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*0\.colour"):
        model.load_state_dict(more)
    model.load_state_dict(more, strict=False)


def test_dumps_hold_what_has_changed() -> None:
    table = SparseEmbedding(None, 16, optimizer="adam", budget="64KiB", when_full="evict_lru")
    copy = SparseEmbedding(None, 16, optimizer="adam", budget="64KiB", when_full="evict_lru")
    mark = -1
    for first in (0, 100, 200, 250, 300):
        table(torch.arange(first, first + 100)).sum().backward()
        dump = table.changes(mark)
        assert len(dump["keys"]) == 100
        copy.apply_changes(dump)
        mark = int(dump["counters"][1])
        found, wanted = copy.state_dict(), table.state_dict()
        orders = [state["keys"].argsort() for state in (found, wanted)]
        for name in ("keys", "rows", "exp_avg", "exp_avg_sq", "stamps"):
            assert torch.equal(found[name][orders[0]], wanted[name][orders[1]]), name
    assert table.stats().evictions > 0
    fresh = SparseEmbedding(None, 16, optimizer="adam")
    with pytest.raises(InvalidArgumentError, match="apply the dumps in their order"):
        fresh.apply_changes(dump)
    with pytest.raises(InvalidArgumentError, match="take it with changes"):
        fresh.apply_changes({"keys": dump["keys"]})
    with pytest.raises(InvalidArgumentError, match="the state has no rows"):
        fresh.apply_changes({name: value for name, value in dump.items() if name != "rows"})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda dump: dump.update(since=-1), "since must be a dense tensor .* got -1"),
        (
            lambda dump: dump.update(since=torch.tensor([-1])),
            r"since has shape \(1,\), expected 0 d",
        ),
        (lambda dump: dump.update(present=[1]), r"present must be a dense tensor .* got \[1\]"),
        (lambda dump: dump.update(present=dump["present"].int()), "present has dtype torch.int32"),
        (lambda dump: dump.update(present=dump["present"][None]), r"present has shape \(1, 3\)"),
        (lambda dump: dump.update(present=dump["present"] + 9), "present lacks keys of the dump's"),
        (lambda dump: dump.update(scales=-dump["scales"]), "scales has a negative number"),
    ],
)
def test_damaged_dumps_change_nothing(change: Any, text: str) -> None:
    table, other = _trained(), _trained(seed=2, dtype=torch.int8)
    dump = other.changes()
    change(dump)
    before = table.state_dict()
    with pytest.raises(InvalidArgumentError, match=text):
        table.apply_changes(dump)
    for key, value in table.state_dict().items():
        assert torch.equal(before[key], value)


def test_dumps_are_applied_in_their_order() -> None:
    table, copy = _trained(), SparseEmbedding(None, 5, optimizer="adam")
    dumps = [table.changes()]
    for key in (4, -2, 4):
        table(torch.tensor([key])).sum().backward()
        dumps.append(table.changes(int(dumps[-1]["counters"][1])))
    copy.apply_changes(dumps[0])
    # All of them have the same rows, so that their number tells nothing.
    with pytest.raises(InvalidArgumentError, match="changes from 6 to 8, this table is at 4"):
        copy.apply_changes(dumps[2])
    for dump in dumps[1:]:
        copy.apply_changes(dump)
    with pytest.raises(InvalidArgumentError, match="changes from 4 to 6, this table is at 10"):
        copy.apply_changes(dumps[1])
    ids = table.keys()
    assert torch.equal(copy.eval()(ids), table.eval()(ids))
    with pytest.raises(InvalidArgumentError, match="its mark, or -1 for all rows, got -2"):
        table.changes(-2)
    with pytest.raises(ArgumentTypeError, match=r"since must be an earlier dump or int.* got str"):
        table.changes("x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "into"), [(torch.int8, torch.float32), (torch.bfloat16, torch.int8)]
)
def test_dumps_of_other_row_types_are_converted(dtype: torch.dtype, into: torch.dtype) -> None:
    table, copy = _trained(dtype=dtype), SparseEmbedding(None, 5, optimizer="adam", dtype=into)
    first = table.changes()
    copy.apply_changes(first)
    table(torch.tensor([4, 9])).square().sum().backward()
    copy.apply_changes(table.changes(int(first["counters"][1])))
    ids = table.keys()
    found, wanted = copy.eval()(ids).float(), table.eval()(ids).float()
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0.03)


def test_a_dump_is_of_one_moment() -> None:
    table = SparseEmbedding(None, 4, optimizer="adam")
    copy = SparseEmbedding(None, 4, optimizer="adam")
    table(torch.arange(10)).sum().backward()
    done = threading.Event()

    def train() -> None:
        first = 0
        while not done.is_set():
            table(torch.arange(first, first + 3)).sum().backward()
            first += 2

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        mark = -1
        for _ in range(30):
            dump = table.changes(mark)
            copy.apply_changes(dump)
            mark = int(dump["counters"][1])
    finally:
        done.set()
        trainer.join()
    copy.apply_changes(table.changes(mark))
    ids = table.keys()
    assert torch.equal(copy.eval()(ids), table.eval()(ids))


_IDS = st.lists(st.integers(-40, 40), min_size=1, max_size=12)
_STEPS = st.lists(st.one_of(_IDS, st.sampled_from(["save", "read"])), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(steps=_STEPS, budgeted=st.booleans(), seed=st.integers(0, 2**62))
def test_any_history_equals_a_dictionary(steps: list[Any], budgeted: bool, seed: int) -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.5, "seed": seed}
    if budgeted:
        options |= {"budget": 2500, "when_full": "evict_lru"}
    table, untrained = SparseEmbedding(None, 4, **options), SparseEmbedding(None, 4, **options)
    model = DictTable(0.5, table.stats().capacity)
    untrained.eval()
    for step in steps:
        if step == "save":
            again = SparseEmbedding(None, 4, **options)
            again.load_state_dict(table.state_dict())
            table = again
        elif step == "read":
            ids = torch.arange(-41, 42)
            rows = [model.rows.get(int(key), untrained(key)) for key in ids]
            torch.testing.assert_close(table.eval()(ids), torch.stack(rows))
            table.train()
        else:
            _train(table, model, step, untrained)
        assert table._table is not None
        table._table.check()
    assert table.stats().rows_in_use == len(model.rows)


def _train(table: SparseEmbedding, model: DictTable, step: list[int], fresh: Any) -> None:
    # As many ids as are used equally long ago leave in an order that is the table's own.
    for key in dict.fromkeys(step):
        ids = torch.tensor([key] * step.count(key))
        grads: Tensor = torch.randn(len(ids), 4)
        output = table(ids)
        torch.testing.assert_close(output, model.train(ids.tolist(), fresh(ids), grads))
        output.backward(grads)
