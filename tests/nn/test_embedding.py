"""Tables with a fused optimizer equal torch's modules with torch's optimizers."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from helpers.seeds import stress_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vramkit.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    RowIndexError,
    TableFullError,
    TableUsageError,
    UnsupportedDeviceError,
)
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.usefixtures("tables"),
]

ROWS, DIM = 23, 6
OPTIMIZERS: dict[str, Any] = {
    "sgd": (torch.optim.SGD, {}),
    "adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    "adam": (torch.optim.SparseAdam, {"betas": (0.8, 0.95), "eps": 1e-6}),
}


def _random_arguments(chance: random.Random, bag: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "padding_idx": chance.choice([None, 3, -1]),
        "max_norm": chance.choice([None, None, 1.5]),
        "norm_type": chance.choice([2.0, 1.0, 3.0, float("inf")]),
        "scale_grad_by_freq": chance.random() < 0.3,
    }
    if bag:
        arguments["mode"] = chance.choice(["sum", "mean", "max"])
        arguments["include_last_offset"] = chance.random() < 0.5
        # PyTorch divides by the count of another id: test_bags_divide_by_the_frequency.
        arguments["scale_grad_by_freq"] = False
    return arguments


def _random_inputs(chance: random.Random, plain: nn.Module) -> list[Tensor | None]:
    dtype = chance.choice([torch.int64, torch.int32])
    if isinstance(plain, nn.Embedding):
        shape = chance.choice([(), (7,), (3, 4), (2, 3, 2), (0,)])
        return [torch.randint(ROWS, shape, dtype=dtype)]
    assert isinstance(plain, nn.EmbeddingBag)
    weighted = plain.mode == "sum" and chance.random() < 0.5
    if chance.random() < 0.4:
        ids = torch.randint(ROWS, (4, chance.randint(1, 5)), dtype=dtype)
        return [ids, None, torch.rand(ids.shape) if weighted else None]
    count = chance.randint(1, 12)
    starts = sorted([0, *(chance.randint(0, count) for _ in range(4))])
    offsets = torch.tensor(starts + ([count] if plain.include_last_offset else []), dtype=dtype)
    ids = torch.randint(ROWS, (count,), dtype=dtype)
    return [ids, offsets, torch.rand(count) if weighted else None]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bag", [False, True])
def test_random_configurations_train_as_torchs_modules(bag: bool, optimizer: str) -> None:
    chance = random.Random(stress_seed())
    torch.manual_seed(chance.getrandbits(32))
    for _ in range(20):
        arguments = _random_arguments(chance, bag)
        make: Any = nn.EmbeddingBag if bag else nn.Embedding
        plain = make(ROWS, DIM, **arguments)
        own: Any = SparseEmbeddingBag if bag else SparseEmbedding
        kind, options = OPTIMIZERS[optimizer]
        table = own.from_embedding(plain, optimizer=optimizer, lr=0.1, **options)
        _train_both(chance, plain, table, kind, options)


def _train_both(chance: random.Random, plain: Any, table: Any, kind: Any, options: Any) -> None:
    """Dense gradients, cut to the rows in use, are what sparse ones would be."""
    reference = kind([plain.weight], lr=0.1, **options)
    for _ in range(4):
        inputs = _random_inputs(chance, plain)
        weights = inputs[2] if len(inputs) > 2 else None
        both = [None if weights is None else weights.clone().requires_grad_() for _ in range(2)]
        outputs = []
        for module, own in zip((plain, table), both, strict=True):
            outputs.append(module(*inputs[:2], *([own] if len(inputs) > 2 else [])))
        torch.testing.assert_close(outputs[1], outputs[0])
        grad = torch.randn_like(outputs[0])
        reference.zero_grad()
        for output in outputs:
            output.backward(grad)
        assert plain.weight.grad is not None
        used = inputs[0].long().unique() if inputs[0] is not None else None
        if plain.padding_idx is not None:
            used = used[used != plain.padding_idx]
        values = plain.weight.grad[used]
        plain.weight.grad = torch.sparse_coo_tensor(
            used[None], values, plain.weight.shape, check_invariants=False
        )
        reference.step()
        if both[0] is not None:
            torch.testing.assert_close(both[1].grad, both[0].grad)
    torch.testing.assert_close(table.to_embedding().weight, plain.weight)
    assert table.stats().rows_in_use == ROWS
    table._table.check()


def test_bags_divide_by_the_frequency() -> None:
    weight = torch.randn(5, 3)
    bag = SparseEmbeddingBag.from_pretrained(
        weight, freeze=False, scale_grad_by_freq=True, mode="sum", optimizer="sgd", lr=1.0
    )
    ids, grads = torch.tensor([[3, 1], [3, 3], [4, 0]]), torch.randn(3, 3)
    bag(ids).backward(grads)
    weight[0] -= grads[2]
    weight[1] -= grads[0]
    weight[3] -= (grads[0] + 2 * grads[1]) / 3
    weight[4] -= grads[2]
    torch.testing.assert_close(bag.to_embedding().weight, weight)


def test_weights_get_gradients_in_evaluation_too() -> None:
    bag = SparseEmbeddingBag.from_pretrained(
        torch.arange(6.0).view(3, 2), mode="sum", optimizer="sgd"
    )
    weights = torch.ones(1, 2, requires_grad=True)
    bag.eval()(torch.tensor([[2, 1]]), None, weights).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [[9, 5]]
    assert bag.stats().rows_in_use == 3


def test_rowwise_adagrad_follows_its_formula() -> None:
    weight = torch.randn(4, 8)
    table = SparseEmbedding.from_pretrained(
        weight, freeze=False, optimizer="rowwise_adagrad", lr=0.5, eps=1e-3
    )
    grads, total = torch.randn(3, 8), torch.zeros(3)
    for _ in range(3):
        table(torch.tensor([0, 2, 3])).backward(grads)
        total += grads.square().mean(1)
        weight[[0, 2, 3]] -= 0.5 * grads / (total.sqrt() + 1e-3)[:, None]
    torch.testing.assert_close(table.to_embedding().weight, weight)


def test_without_a_fused_optimizer_it_is_torchs_module() -> None:
    plain = nn.EmbeddingBag(9, 4, mode="sum", sparse=True)
    table = SparseEmbeddingBag.from_embedding(plain)
    assert isinstance(table.weight, nn.Parameter)
    ids = torch.tensor([[1, 2], [2, 8]])
    table(ids).sum().backward()
    plain(ids).sum().backward()
    assert plain.weight.grad is not None
    assert torch.equal(table.weight.grad.to_dense(), plain.weight.grad.to_dense())
    plain.load_state_dict(table.state_dict())
    assert table.stats().bytes == table.weight.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_reading_never_inserts_and_agrees_with_training(dtype: torch.dtype) -> None:
    table = SparseEmbedding(None, 12, optimizer="sgd", dtype=dtype, seed=5)
    ids = torch.tensor([2**62, -7, 0, -7])
    table.eval()
    before = table(ids)
    assert table.stats().rows_in_use == 0
    with torch.no_grad():
        assert torch.equal(table.train()(ids), before)
    assert table.stats().rows_in_use == 0
    assert torch.equal(table(ids), before)
    assert sorted(table.keys().tolist()) == [-7, 0, 2**62]
    assert before.dtype == (torch.float32 if dtype is torch.int8 else dtype)
    again = SparseEmbedding(None, 12, optimizer="adam", dtype=dtype, seed=5)
    assert torch.equal(again(ids), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_small_updates_are_not_lost_in_narrow_rows(dtype: torch.dtype) -> None:
    table = SparseEmbedding.from_pretrained(
        torch.ones(1, 256), freeze=False, optimizer="sgd", lr=1.0, dtype=dtype, seed=1
    )
    for _ in range(500):
        table(torch.tensor([0])).backward(
            torch.full((1, 256), 1e-3, dtype=table(table.keys()).dtype)
        )
    mean = table.eval()(torch.tensor([0])).float().mean()
    assert mean == pytest.approx(0.5, abs=0.03)


def test_a_table_used_twice_gets_one_update() -> None:
    plain = nn.Embedding(6, 3, sparse=True)
    table = SparseEmbedding.from_embedding(plain, optimizer="adam", lr=0.1)
    reference = torch.optim.SparseAdam(plain.parameters(), lr=0.1)
    first, second = torch.tensor([1, 2, 2]), torch.tensor([2, 5])
    for module in (plain, table):
        (module(first).sum() * 2 + module(second).square().sum()).backward()
    reference.step()
    torch.testing.assert_close(table.to_embedding().weight, plain.weight)


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_gradients_come_back(sparse: bool) -> None:
    plain, bag = nn.Embedding(6, 3, sparse=sparse), nn.EmbeddingBag(6, 3, sparse=sparse)
    tables = (
        SparseEmbedding.from_embedding(plain, optimizer="adam"),
        SparseEmbeddingBag.from_embedding(bag, optimizer="adam"),
    )
    for table in tables:
        assert table.to_embedding().sparse is sparse
        assert copy.deepcopy(table).to_embedding().sparse is sparse
        assert table.sparse
    # A table that was none before has no wish.
    assert not SparseEmbedding(6, 3, optimizer="adam").to_embedding().sparse
    assert SparseEmbedding(6, 3).to_embedding().sparse


def test_accumulating_scaling_and_clipping() -> None:
    plain = nn.Embedding(6, 3, sparse=False)
    table = SparseEmbedding.from_embedding(plain, optimizer="sgd", lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with table.accumulate(scaler=scaler, max_norm=0.5):
        for ids in (torch.tensor([1, 2]), torch.tensor([2, 3])):
            scaler.scale(table(ids).square().sum()).backward()
            plain(ids).square().sum().backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    torch.testing.assert_close(table.to_embedding().weight, plain.weight)
    with (
        pytest.warns(RuntimeWarning, match="skips an update"),
        table.accumulate(scaler=scaler),
    ):
        (table(torch.tensor([1])).sum() * float("inf")).backward()
    torch.testing.assert_close(table.to_embedding().weight, plain.weight)
    with table.accumulate(), pytest.raises(InvalidArgumentError, match="active already"):
        table.accumulate().__enter__()


def test_a_failed_backward_leaves_nothing_behind() -> None:
    table = SparseEmbedding(4, 3, optimizer="sgd", lr=1.0, init_std=0.0)

    def fail(_grad: Tensor) -> None:
        raise KeyError("stop")

    first = torch.zeros(3, requires_grad=True)
    first.register_hook(fail)
    with pytest.raises(KeyError):
        (table(torch.tensor([1])) + first * 1).sum().backward()
    before = table.to_embedding().weight.clone()
    table(torch.tensor([2])).sum().backward()
    assert torch.equal(table.to_embedding().weight[1], before[1])
    assert table.to_embedding().weight[2].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant: bool) -> None:
    plain = nn.Embedding(6, 3, sparse=True)
    table = SparseEmbedding.from_embedding(plain, optimizer="sgd", lr=0.1)
    scale = torch.ones(3, requires_grad=True)
    ids = torch.tensor([1, 1, 4])
    checkpoint(lambda s: table(ids) * s, scale, use_reentrant=use_reentrant).sum().backward()
    (plain(ids) * scale).sum().backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    torch.testing.assert_close(table.to_embedding().weight, plain.weight)


def test_schedules_and_freezing() -> None:
    table = SparseEmbedding(4, 2, optimizer="sgd", lr=1.0, init_std=0.0)
    ids = torch.tensor([0])
    for rate in (1.0, 0.5):
        table.lr = rate
        table(ids).sum().backward()
    assert table.eval()(ids).tolist() == [[-1.5, -1.5]]
    table.train().requires_grad_(False)
    assert not table(torch.tensor([3])).requires_grad
    assert table.stats().rows_in_use == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's, about its own look
def test_compiled_models_train() -> None:
    table = SparseEmbedding(4, 2, optimizer="sgd", lr=1.0, init_std=0.0)
    model = torch.compile(lambda ids: table(ids) * 2, backend="eager")
    model(torch.tensor([1])).sum().backward()
    assert table.eval()(torch.tensor([1])).tolist() == [[-2, -2]]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_apart(duplicate: Any) -> None:
    table = SparseEmbedding(None, 4, optimizer="adam", seed=3)
    table(torch.tensor([1, 2])).sum().backward()
    again = duplicate(table)
    for module in (table, again):
        module(torch.tensor([2, 9])).sum().backward()
    ids = torch.tensor([1, 2, 9, 10])
    assert torch.equal(again.eval()(ids), table.eval()(ids))
    again.train()(ids).sum().backward()
    assert not torch.equal(again.eval()(ids), table(ids))


def test_conversion_of_the_model_converts_the_rows() -> None:
    table = SparseEmbedding(None, 4, optimizer="adam")
    table(torch.tensor([1])).sum().backward()
    before = table.eval()(torch.tensor([1]))
    assert torch.equal(table.bfloat16()(torch.tensor([1])), before.bfloat16())
    narrow = SparseEmbedding(None, 4, optimizer="adam", dtype=torch.int8).half()
    assert narrow(torch.tensor([1])).dtype is torch.float16
    with pytest.raises(InvalidArgumentError, match=r"converted to torch\.float64"):
        table.double()
    with pytest.raises(UnsupportedDeviceError, match="not on meta"):
        table.to("meta")


def test_ddp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SparseEmbedding(None, 4, optimizer="adam")
    monkeypatch.setattr(DistributedDataParallel, "_active_ddp_module", table)
    with pytest.raises(TableUsageError, match="build it with optimizer=None"):
        table(torch.tensor([1]))


def test_collections_share_tables() -> None:
    tables = SparseEmbeddingCollection(
        {
            "item": SparseEmbedding(None, 4, optimizer="sgd"),
            "word": SparseEmbeddingBag(None, 2, optimizer="sgd"),
        },
        features={"a": "item", "b": "item", "text": "word"},
    )
    ids = torch.tensor([1, 2])
    found = tables({"a": ids, "b": ids, "text": (ids, torch.tensor([0]))})
    assert torch.equal(found["a"], found["b"])
    assert found["text"].shape == (1, 2)
    with pytest.raises(InvalidArgumentError, match=r"must be \['a', 'b', 'text'\], got \['a'\]"):
        tables({"a": ids})
    with pytest.raises(InvalidArgumentError, match="feature 'c' names the table 'no'"):
        SparseEmbeddingCollection({}, features={"c": "no"})
    with pytest.raises(ArgumentTypeError, match="got Linear"):
        SparseEmbeddingCollection({"x": nn.Linear(1, 1)})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"optimizer": "lamb"}, InvalidArgumentError, "optimizer must be None or one of"),
        ({"num_embeddings": None}, InvalidArgumentError, "needs a fused optimizer"),
        ({"scale_grad_by_freq": True}, InvalidArgumentError, "pass sparse=False"),
        ({"dtype": torch.int8}, InvalidArgumentError, "needs a fused optimizer"),
        ({"lr": 0.1}, InvalidArgumentError, "lr: only tables with a fused optimizer"),
        ({"optimizer": "sgd", "sparse": False}, InvalidArgumentError, "sparse=False"),
        ({"optimizer": "sgd", "eps": 1.0}, InvalidArgumentError, r"takes \['lr'\], got \['eps'\]"),
        ({"optimizer": "adam", "betas": (1.0, 0.9)}, InvalidArgumentError, "betas must be two"),
        ({"optimizer": "sgd", "lr": -1.0}, InvalidArgumentError, "lr must be finite and not"),
        ({"optimizer": "sgd", "lr": "x"}, ArgumentTypeError, "lr must be a number, got 'x'"),
        ({"optimizer": "sgd", "dtype": torch.float64}, InvalidArgumentError, "dtype must be"),
        ({"optimizer": "sgd", "dtype": "int8"}, InvalidArgumentError, "dtype must .* got 'int8'"),
        ({"optimizer": "sgd", "placement": "disk"}, InvalidArgumentError, "placement must be"),
        ({"optimizer": "sgd", "when_full": "drop"}, InvalidArgumentError, "when_full must be"),
        ({"optimizer": "sgd", "when_full": "error"}, InvalidArgumentError, "grows without a"),
        ({"optimizer": "sgd", "budget": 10}, InvalidArgumentError, "one row of 4 values takes"),
        ({"optimizer": "sgd", "device": "meta"}, UnsupportedDeviceError, "pass device='cpu'"),
        ({"optimizer": "sgd", "seed": -1}, InvalidArgumentError, "seed must be an integer"),
        ({"optimizer": "sgd", "colour": 1}, ArgumentTypeError, "unexpected arguments"),
        ({"padding_idx": 9}, InvalidArgumentError, "padding_idx must be within"),
        ({"_weight": torch.ones(2, 2)}, InvalidArgumentError, r"has shape \(2, 2\)"),
        ({"optimizer": "sgd", "embedding_dim": 0}, InvalidArgumentError, "embedding_dim must be"),
    ],
)
def test_arguments_that_cannot_be_honoured(arguments: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        SparseEmbedding(**({"num_embeddings": 9, "embedding_dim": 4} | arguments))


def test_bags_that_cannot_be_honoured() -> None:
    for arguments, text in [
        ({"mode": "min"}, "mode must be"),
        ({"mode": "max"}, "pass sparse=False"),
        ({"mode": "max", "scale_grad_by_freq": True, "optimizer": "sgd"}, "for mode 'sum' and"),
    ]:
        with pytest.raises(InvalidArgumentError, match=text):
            SparseEmbeddingBag(9, 4, **arguments)  # type: ignore[arg-type]


def test_inputs_that_do_not_fit() -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd")
    bag = SparseEmbeddingBag(9, 4, optimizer="sgd")
    ids, starts = torch.tensor([1, 2]), torch.tensor([0])
    cases: list[tuple[Any, Any, str]] = [
        (lambda: table(torch.tensor([9])), RowIndexError, "got id 9, the table has rows 0 to 8"),
        (lambda: table.eval()(torch.tensor([-1])), RowIndexError, "got id -1"),
        (
            lambda: table(torch.tensor([1.0])),
            ArgumentTypeError,
            "int64 or int32, got torch.float32",
        ),
        (lambda: bag(ids), InvalidArgumentError, "1-D ids need 1-D offsets"),
        (lambda: bag(ids[None], starts), InvalidArgumentError, "leave out offsets"),
        (lambda: bag(ids[None, None]), InvalidArgumentError, "must be 1-D or 2-D"),
        (lambda: bag(ids, torch.tensor([1])), InvalidArgumentError, "begin with 0"),
        (lambda: bag(ids, torch.tensor([0, 3])), InvalidArgumentError, "the number of ids, 2"),
        (lambda: bag(ids, torch.tensor([0, 2, 1])), InvalidArgumentError, "must not decrease"),
        (lambda: bag(ids, starts, torch.ones(2)), InvalidArgumentError, "this module has mode="),
        (lambda: table.weight, AttributeError, r"call to_embedding\(\)"),
        (lambda: SparseEmbedding(9, 4).keys(), InvalidArgumentError, "has a plain weight"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()


def test_a_full_table_says_so_and_stays_as_it_was() -> None:
    table = SparseEmbedding(None, 16, optimizer="adam", budget="16KiB")
    capacity = table.stats().capacity
    assert capacity is not None
    table(torch.arange(capacity)).sum().backward()
    with pytest.raises(TableFullError, match="raise budget, or choose when_full='evict_lru'"):
        table(torch.tensor([-1]))
    assert table.stats().rows_in_use == capacity
    assert table.stats().bytes <= 16 << 10
