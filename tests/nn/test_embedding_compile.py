"""Lookups in evaluation compile without a graph break; training lookups are one; none exports."""

from __future__ import annotations

import gc
import shutil
import threading
from typing import Any

import pytest
import torch
from helpers.pools import run_script
from helpers.tables import comparable
from torch import Tensor, nn

from vramkit.errors import TableUsageError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection
from vramkit.nn._embedding import _table

pytestmark = [
    # torch's own, about its own look at tensors, and about torch.jit.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
]

_BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
    ),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def _table_of(seed: int = 1, **options: Any) -> SparseEmbedding:
    table = SparseEmbedding(None, 4, **({"optimizer": "sgd", "seed": seed} | options))
    table(torch.tensor([1, 2, 3])).sum().backward()
    return table.eval()


@pytest.mark.parametrize("backend", _BACKENDS)
def test_evaluation_is_one_graph(backend: str) -> None:
    table = _table_of(max_norm=1.0, dtype=torch.bfloat16)
    bag = SparseEmbeddingBag(50, 4, optimizer="adam", seed=2, mode="mean").eval()

    def model(ids: Tensor, starts: Tensor) -> tuple[Tensor, ...]:
        return table(ids) * 2, bag(ids) + 1, bag(ids.view(-1), starts) - 1

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for rows in (2, 3, 5):
        ids = torch.randint(50, (rows, 3))
        starts = torch.tensor([0, 2, 3])
        for found, wanted in zip(compiled(ids, starts), model(ids, starts), strict=True):
            torch.testing.assert_close(found, wanted)
    table.train()
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, starts)[0], model(ids, starts)[0])
    assert table.stats().rows_in_use == 3


@pytest.mark.parametrize("backend", _BACKENDS)
def test_collections_in_evaluation_are_one_graph(backend: str) -> None:
    bag = SparseEmbeddingBag(50, 8, optimizer="adam", seed=2, mode="max")
    tables = SparseEmbeddingCollection(
        {"item": _table_of(), "word": bag}, features={"a": "item", "b": "item", "c": "word"}
    ).eval()
    compiled = torch.compile(
        lambda ids: sum(rows.sum() for rows in tables({"a": ids, "b": ids[0], "c": ids}).values()),
        backend=backend,
        fullgraph=True,
    )
    ids = torch.randint(50, (4, 3))
    wanted = sum(rows.sum() for rows in tables({"a": ids, "b": ids[0], "c": ids}).values())
    torch.testing.assert_close(compiled(ids), wanted)


def test_another_native_table_is_noticed() -> None:
    table, other = _table_of(), _table_of(seed=5)
    compiled = torch.compile(lambda ids: table(ids) + 1, backend="aot_eager", fullgraph=True)
    ids = torch.tensor([2, 9])
    assert torch.equal(compiled(ids), table(ids) + 1)
    for _ in range(2):
        table.load_state_dict(other.state_dict())
        assert torch.equal(table(ids), other(ids))
        assert torch.equal(compiled(ids), other(ids) + 1)
        other.train()(ids).sum().backward()
        other.eval()


@pytest.mark.parametrize("joint", [False, True])
def test_compiled_models_stay_valid_when_states_are_loaded(joint: bool) -> None:
    trainer, table, other = _table_of(), _table_of(), _table_of(seed=6)
    both = SparseEmbeddingCollection({"a": table, "b": other}).eval()
    module = (lambda ids: both({"a": ids, "b": ids})["a"]) if joint else table
    compiled = torch.compile(lambda ids: module(ids) + 1, backend="eager", fullgraph=True)
    ids = torch.arange(50)
    dump: Any = -1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(4):
            trainer.train()(ids[number:]).square().sum().backward()
            dump = trainer.eval().changes(since=dump)
            table.apply_changes(dump)
            assert torch.equal(compiled(ids), trainer(ids) + 1)
        table.load_state_dict(other.state_dict())
        assert torch.equal(compiled(ids), other(ids) + 1)
        table.reset_parameters()
        assert torch.equal(compiled(ids), table(ids) + 1)


def test_compiled_models_stay_valid_while_another_thread_loads() -> None:
    table = _table_of()
    compiled = torch.compile(lambda ids: table(ids) + 1, backend="eager")
    ids, state = torch.arange(50), table.state_dict()
    wanted = compiled(ids)
    loads = threading.Thread(target=lambda: [table.load_state_dict(state) for _ in range(300)])
    with torch._dynamo.config.patch(error_on_recompile=True):
        loads.start()
        while loads.is_alive():
            assert torch.equal(compiled(ids), wanted)
    loads.join()


def test_a_table_and_the_one_in_its_place_are_apart() -> None:
    table = _table_of()
    old: Any = table._table
    ids = torch.arange(50)
    before = old.read(ids)
    copies = [table(ids)]
    table.reset_parameters()
    new: Any = table._table
    assert new.name not in (old.name, new.number, old.number)
    assert torch.equal(old.read(ids), before)
    del old
    gc.collect()
    copies.append(table(ids))
    assert not torch.equal(*copies)
    name, operators, here = new.name, new.operators, new._here
    del table, new
    gc.collect()
    with pytest.raises(RuntimeError, match=f"there is no table {name}"):
        operators.table_name.default(here, 0, name)


def test_training_goes_on_around_a_graph_break() -> None:
    tables = [_table_of(lr=1.0).train() for _ in range(2)]
    ids = torch.tensor([1, 9])
    compiled = torch.compile(lambda ids: tables[0](ids) * 2, backend="aot_eager")
    for _ in range(2):
        compiled(ids).square().sum().backward()
        (tables[1](ids) * 2).square().sum().backward()
    state = tables[1].state_dict()
    for name, value in comparable(tables[0]).items():
        assert torch.equal(value, state[name]), name


def test_training_in_one_graph_is_refused() -> None:
    table = _table_of().train()
    compiled = torch.compile(lambda ids: table(ids) * 2, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="changes the table, in forward and"):
        compiled(torch.tensor([1]))


class _Looks(nn.Module):
    def __init__(self, tables: SparseEmbeddingCollection) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, ids: Tensor) -> Tensor:
        return self.tables({"a": ids, "b": ids})["b"]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_exports_of_fused_tables_are_refused(training: bool, strict: bool) -> None:
    bag = SparseEmbeddingBag(50, 4, optimizer="adam")
    both = _Looks(SparseEmbeddingCollection({"a": _table_of(), "b": _table_of()}))
    ids = torch.tensor([[1, 2, 3]])
    # Dynamo, which strict exports use, raises an error of its own with the text of each other one.
    error = torch._dynamo.exc.Unsupported if strict else TableUsageError
    for module in (_table_of(), bag, both):
        with pytest.raises(error, match=r"cannot record a lookup .* to_embedding\(\)"):
            torch.export.export(module.train(training), (ids,), strict=strict)


@pytest.mark.parametrize("strict", [False, True])
def test_what_a_refused_export_advises_works(strict: bool) -> None:
    table, ids = SparseEmbedding(9, 4, optimizer="adam").eval(), torch.tensor([1, 8])
    for module in (table.to_embedding(), SparseEmbedding.from_embedding(table.to_embedding())):
        program = torch.export.export(module, (ids,), strict=strict)
        assert torch.equal(program.module()(ids), table(ids))


def test_fx_keeps_fused_tables_as_leaves_or_not_at_all() -> None:
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            own = isinstance(m, SparseEmbedding | SparseEmbeddingBag)
            return own or super().is_leaf_module(m, module_qualified_name)

    bag = SparseEmbeddingBag(50, 4, optimizer="adam")
    for table, ids in ((_table_of(), [1, 9]), (bag, [[1, 9]])):
        model = nn.Sequential(table, nn.Linear(4, 2))
        with pytest.raises(TableUsageError, match=r"torch.fx cannot trace .* is_leaf_module\(\)"):
            torch.fx.symbolic_trace(model)
        traced = torch.fx.GraphModule(model, Leaves().trace(model))
        assert torch.equal(traced(torch.tensor(ids)), model(torch.tensor(ids)))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_tables_with_a_plain_weight_are_traced() -> None:
    both = _Looks(
        SparseEmbeddingCollection({"a": SparseEmbedding(9, 4), "b": SparseEmbedding(9, 2)})
    )
    ids = torch.tensor([1, 8])
    for module in (SparseEmbedding(9, 4), SparseEmbeddingBag(9, 4), both):
        example = ids[None] if isinstance(module, SparseEmbeddingBag) else ids
        traced = torch.jit.trace(module, example)
        assert torch.equal(traced(example.flip(-1)), module(example.flip(-1)))


def test_ids_outside_a_table_are_errors_when_compiled() -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd").eval()
    compiled = torch.compile(lambda ids: table(ids) * 2, backend="aot_eager", fullgraph=True)
    with pytest.raises(IndexError, match="got id 9, the table has rows 0 to 8"):
        compiled(torch.tensor([1, 9]))


def test_operators_of_evaluation_are_well_formed() -> None:
    table = _table_of()._table
    assert table is not None
    ids, nothing, weights = torch.tensor([[1, 2], [2, 7]]), torch.empty(0), torch.rand(2, 2)
    starts = torch.tensor([0, 1])
    number = table.number
    read = torch.ops.vramkit.table_read.default
    for case in (
        (ids, nothing, nothing, number, 0, torch.float32, 4, 0.0, 2.0),
        (ids, nothing, weights, number, 1 + 8, torch.float32, 4, 1.0, 2.0),
        (ids.view(-1), starts, nothing, number, 3 + 4, torch.float32, 4, 0.0, 2.0),
        (ids.view(-1), torch.tensor([0, 4]), nothing, number, 2, torch.float32, 4, 0.0, 2.0),
    ):
        torch.library.opcheck(read, case)
    parts = [ids, nothing, nothing, ids, nothing, weights]
    plan = [number, 0, 0, 4, number, 1 + 8, 0, 4]
    torch.library.opcheck(
        torch.ops.vramkit.tables_read.default, (parts, plan, [0.0, 2.0, 0.0, 2.0])
    )


def test_tables_can_go_while_something_traces() -> None:
    closed = []

    class Operators:
        def __getattr__(self, name: str) -> Any:
            closed.append(name)
            return getattr(torch.ops.vramkit, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_table, "_OPS", Operators())
        table = SparseEmbedding(None, 4, optimizer="sgd")
    with torch._subclasses.FakeTensorMode():
        del table
    assert closed[-1] == "table_close"


@pytest.mark.parametrize("scope", ["FakeTensorMode()", "torch.inference_mode()"])
def test_the_first_use_may_be_anywhere(scope: str) -> None:
    source = """
        import sys, torch, vramkit
        from torch._subclasses import FakeTensorMode

        with eval(sys.argv[1]):
            bag_type = vramkit.nn.SparseEmbeddingBag
        bag = bag_type(None, 4, optimizer="sgd", mode="sum")
        weights = torch.ones(3, requires_grad=True)
        for given in (weights, None):
            bag(torch.tensor([1, 2, 3]), torch.tensor([0]), given).sum().backward()
        print(weights.grad is not None, bag.stats().rows_in_use)
    """
    assert run_script(source, scope).split() == ["True", "3"]
