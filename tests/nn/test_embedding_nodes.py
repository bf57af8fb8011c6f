"""Training lookups by the node of autograd in C++ and by that in Python do the same."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.tables import comparable
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from vramkit.errors import (
    InvalidArgumentError,
    RowIndexError,
    TableFullError,
    TableUsageError,
)
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection
from vramkit.nn._embedding import _gradients

pytestmark = pytest.mark.usefixtures("tables")

IDS = torch.tensor([[1, 2, 3], [3, 4, 1]])
NAMES = {"C++": "TableLookUpBackward", "Python": "_LookUpBackward"}


def _embedding(**options: Any) -> SparseEmbedding:
    return SparseEmbedding(None, 4, **({"optimizer": "adam", "seed": 1} | options))


def _bag(**options: Any) -> SparseEmbeddingBag:
    return SparseEmbeddingBag(
        None, 4, **({"optimizer": "adam", "seed": 1, "mode": "sum"} | options)
    )


def _steps(module: Any) -> int:
    return int(module.state_dict()["counters"][0])


def _several(weights: Tensor) -> Iterator[Any]:
    """Train some modules; returns each with the outputs of its last lookups."""
    for rule in ("sgd", "adam"):
        for mode in ("sum", "mean", "max"):
            bag = _bag(optimizer=rule, mode=mode, padding_idx=2)
            yield bag, lambda bag=bag: [bag(IDS), bag(IDS[0], torch.tensor([0, 0, 1]))]
        bag = _bag(optimizer=rule, scale_grad_by_freq=True)
        yield bag, lambda bag=bag: [bag(IDS, None, weights), bag(IDS, None, weights.detach())]
        table = _embedding(optimizer=rule, max_norm=1.0, dtype=torch.bfloat16)
        yield table, lambda table=table: [table(IDS), table(IDS.int()), table(IDS[:, :0])]


def test_rows_and_gradients_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[Tensor]] = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr(_gradients, "has_native_nodes", lambda: False)
        torch.manual_seed(1)
        weights = torch.rand(2, 3, requires_grad=True)
        values: list[Tensor] = []
        for module, look_up in _several(weights):
            for _ in range(3):
                outputs = look_up()
                loss: Any = sum((of * torch.rand_like(of)).sum() for of in outputs)
                loss.backward()
            assert outputs[-1].grad_fn is not None
            assert outputs[-1].grad_fn.name() == NAMES["C++" if native else "Python"]
            assert _steps(module) == 3
            values += [*outputs, *comparable(module).values()]
        assert weights.grad is not None
        found.append([*values, weights.grad])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_a_collection_is_one_node_and_one_update(lookup_node: str) -> None:
    tables = {name: _embedding(optimizer="sgd", lr=1.0) for name in ("a", "b")}
    features = {"a": "a", "again": "a", "b": "b", "unused": "b"}
    collection = SparseEmbeddingCollection(tables, features=features)
    before = {name: table.eval()(IDS) for name, table in tables.items()}
    outputs = collection.train()(dict.fromkeys(features, IDS))
    assert len({output.grad_fn for output in outputs.values()}) == 1
    assert outputs["a"].grad_fn.name() == NAMES[lookup_node]
    (outputs["a"].sum() + 2 * outputs["again"].sum() + outputs["b"].sum()).backward()
    times = (IDS.view(-1, 1) == IDS.view(1, -1)).sum(1).view(*IDS.shape, 1)
    for name, factor in (("a", 3), ("b", 1)):
        torch.testing.assert_close(tables[name].eval()(IDS), before[name] - factor * times)
        assert _steps(tables[name]) == 1


def test_rows_wait_for_the_end_of_the_pass(lookup_node: str) -> None:
    table = _embedding(optimizer="sgd", lr=1.0)
    before = table(IDS)
    seen: list[Tensor] = []
    factor = torch.ones((), requires_grad=True)
    scaled = before * factor
    factor.register_hook(lambda _: seen.append(table.eval()(IDS)))
    scaled.sum().backward()
    assert torch.equal(seen[0], before)
    assert not torch.equal(table.eval()(IDS), before)
    assert before.grad_fn is not None
    assert before.grad_fn.name() == NAMES[lookup_node]


def test_the_learning_rate_is_that_of_the_end_of_the_pass(lookup_node: str) -> None:
    table = _embedding(optimizer="sgd", lr=1.0)
    before = table(IDS[:1])
    table.lr = 0.25
    before.sum().backward()
    torch.testing.assert_close(table.eval()(IDS[:1]), before - 0.25, msg=lookup_node)


def test_a_graph_is_used_once_or_retained(lookup_node: str) -> None:
    table = _embedding()
    output = table(IDS).sum()
    output.backward(retain_graph=True)
    output.backward()
    assert _steps(table) == 2
    with pytest.raises(RuntimeError, match="second time"):
        output.backward()
    assert _steps(table) == 2, lookup_node


def test_a_graph_keeps_its_table(lookup_node: str) -> None:
    table: SparseEmbedding | None = _embedding()
    assert table is not None
    native = weakref.ref(table._table.control.vramkit_native)  # type: ignore[union-attr]
    output: Tensor | None = table(IDS).sum()
    del table
    gc.collect()
    assert native() is not None
    assert output is not None
    output.backward()
    output = None
    gc.collect()
    assert native() is None, lookup_node


def test_passes_that_fail_leave_nothing(lookup_node: str) -> None:
    table = _embedding(optimizer="sgd", lr=1.0)

    def fail(_: Tensor) -> None:
        kept.append(uses())
        raise ValueError("stop")

    def uses() -> int:
        return sys.getrefcount(gradient) + int(gradient._use_count())

    gradient = torch.ones(*IDS.shape, 4)
    kept = [uses()]
    factor = torch.ones((), requires_grad=True)
    early = factor * 1.0
    rows = table(IDS)
    rows.register_hook(lambda _: gradient)
    factor.register_hook(fail)
    with pytest.raises(ValueError, match="stop"):
        (early * rows).sum().backward()
    assert kept[1] > kept[0] == uses()
    assert _steps(table) == 0
    table(IDS).sum().backward()
    assert _steps(table) == 1, lookup_node


def test_hooks_of_saved_tensors(lookup_node: str) -> None:
    table = _embedding()
    packed: list[Tensor] = []
    unpacked: list[int] = []

    def unpack(number: int) -> Tensor:
        unpacked.append(number)
        return packed[number]

    with saved_tensors_hooks(lambda of: packed.append(of) or len(packed) - 1, unpack):
        output = table(IDS)
    assert any(torch.equal(of, IDS) for of in packed if of.shape == IDS.shape)
    output.sum().backward()
    assert unpacked == list(range(len(packed)))
    assert _steps(table) == 1, lookup_node


@pytest.mark.parametrize("change", [lambda of: of.to(torch.int16), lambda of: of.flatten()[:1]])
def test_hooks_that_return_other_tensors(
    lookup_node: str, change: Callable[[Tensor], Tensor]
) -> None:
    table = _embedding()
    with saved_tensors_hooks(lambda of: of, change):
        output = table(IDS)
    with pytest.raises(RuntimeError, match="other tensors than the lookup has saved"):
        output.sum().backward()
    assert _steps(table) == 0, lookup_node


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_update_once(lookup_node: str, reentrant: bool) -> None:
    table, plain = _embedding(), _embedding()
    scale = torch.full((), 2.0, requires_grad=True)
    for of, output in (
        (table, checkpoint(lambda by: table(IDS) * by, scale, use_reentrant=reentrant)),
        (plain, plain(IDS) * 2.0),
    ):
        output.sum().backward()
        assert _steps(of) == 1
    assert torch.equal(table.eval()(IDS), plain.eval()(IDS)), lookup_node


def test_passes_of_several_threads(lookup_node: str) -> None:
    tables = [_embedding(optimizer="sgd", lr=1.0) for _ in range(2)]

    def train(_: int) -> None:
        for _ in range(50):
            sum(table(IDS).sum() for table in tables).backward()  # type: ignore[union-attr]

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(train, range(3)))
    assert [_steps(table) for table in tables] == [150, 150], lookup_node


def test_a_pass_within_a_pass(lookup_node: str) -> None:
    table = _embedding(optimizer="sgd", lr=1.0)
    rows = table(IDS)

    def train_within(_: Tensor) -> None:
        with torch.enable_grad():
            table(IDS).sum().backward()

    rows.register_hook(train_within)
    rows.sum().backward()
    assert _steps(table) == 2, lookup_node


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_gradients_that_can_be_differentiated(lookup_node: str) -> None:
    table = _embedding(optimizer="sgd", lr=1.0)
    weight = torch.ones(4, requires_grad=True)
    rows = table(IDS)
    (rows * weight.square()).sum().backward(create_graph=True)
    assert weight.grad is not None
    weight.grad.sum().backward()
    weight.grad = None
    assert _steps(table) == 2, lookup_node


def test_an_error_of_the_update_reaches_the_caller(lookup_node: str) -> None:
    table = _embedding()
    output = table(IDS).sum()
    inner: Any = table._table
    inner.operators.table_close.default(inner._here, inner.number)
    with pytest.raises(RuntimeError, match=f"there is no table {inner.number}"):
        output.backward()
    assert inner.updates == 0, lookup_node


@pytest.mark.parametrize(
    ("kind", "text", "error"),
    [
        ("IndexError", "index out of range", RowIndexError),
        ("MemoryError", "the budget is full", TableFullError),
        ("ValueError", "offsets must not decrease", InvalidArgumentError),
        ("RuntimeError", "aoti_torch_empty_strided(1) failed", torch.OutOfMemoryError),
        ("RuntimeError", "something else", RuntimeError),
    ],
)
def test_errors_that_native_code_meets_are_those_of_python(
    kind: str, text: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        torch.ops.vramkit.raise_table_error(kind, text)
    assert type(raised.value) is error


def test_transforms_say_what_they_do_not_support(lookup_node: str) -> None:
    table = _embedding()
    gradient = torch.func.grad(lambda by: (table(IDS) * by).sum())
    with pytest.raises(RuntimeError, match="functorch transforms"):
        gradient(torch.ones(4))
    assert table.stats().rows_in_use == 0, lookup_node


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_traces_are_refused(lookup_node: str) -> None:
    table = _embedding()
    for training in (True, False):
        with pytest.raises(TableUsageError, match=r"torch.jit.trace cannot record .* to_embedding"):
            torch.jit.trace(table.train(training), IDS)
    assert table.stats().rows_in_use == 0, lookup_node


def test_compiled_autograd_is_refused() -> None:
    table = _embedding()
    output = table(IDS).sum()
    with (
        compiled_autograd._enable(torch.compile(backend="eager")),
        pytest.raises(RuntimeError, match="compiled autograd cannot run"),
    ):
        output.backward()
    assert _steps(table) == 0


def test_lookups_that_do_not_fit_each_other() -> None:
    table: Any = _embedding()._table
    empty = torch.empty(0)
    kind = _gradients.native_kind(table)
    with pytest.raises(RuntimeError, match="2 lookups with 3 tensors, 4 integers, 2 numbers"):
        torch.ops.vramkit.train_tables(
            kind, [IDS, empty, empty], [table.number, 0, 0, 4], [0.0, 2.0], 2 * [table.control], [0]
        )
    with pytest.raises(RuntimeError, match="a gradient with 1 tensors and 2 integers"):
        torch.ops.vramkit.keep_table_gradient(kind, table.control, [empty], [1, 2])
    with pytest.raises(RuntimeError, match="no operators of tables with the number 1000"):
        torch.ops.vramkit.train_tables(1000, [], [], [], [], [])
