"""What the embedding modules and the collection refuse, and how they say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, TableUsageError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection

pytestmark = pytest.mark.usefixtures("tables")

NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_embeddings": True}, ArgumentTypeError, "num_embeddings must be an integer"),
        ({"num_embeddings": 2.5}, ArgumentTypeError, "got 2.5 of type float"),
        ({"num_embeddings": 2**63}, InvalidArgumentError, "num_embeddings must be from 1 to"),
        ({"embedding_dim": "4"}, ArgumentTypeError, "embedding_dim must be an integer, got '4'"),
        # The low 32 bits are 4.
        ({"embedding_dim": 2**32 + 4}, InvalidArgumentError, "embedding_dim must be from 1 to"),
        ({"padding_idx": 1.5}, ArgumentTypeError, "padding_idx must be an integer"),
        ({"max_norm": 0}, InvalidArgumentError, "max_norm must be positive"),
        ({"max_norm": -1.0}, InvalidArgumentError, "max_norm must be positive"),
        ({"max_norm": NAN}, InvalidArgumentError, "max_norm must be positive"),
        ({"max_norm": "x"}, ArgumentTypeError, "max_norm must be a number, got 'x'"),
        ({"max_norm": "1"}, ArgumentTypeError, "max_norm must be a number, got '1'"),
        ({"max_norm": True}, ArgumentTypeError, "max_norm must be a number, got True"),
        ({"max_norm": 1, "norm_type": 0}, InvalidArgumentError, "norm_type must be positive"),
        ({"norm_type": None}, ArgumentTypeError, "norm_type must be a number"),
        ({"betas": 0.9}, ArgumentTypeError, "betas must be two numbers"),
        ({"betas": ("x", 0.9)}, ArgumentTypeError, "betas must be a number, got 'x'"),
        ({"budget": 2**70}, InvalidArgumentError, "budget must be less than"),
        ({"_weight": [1.0]}, ArgumentTypeError, "_weight must be a tensor, got list"),
    ],
)
def test_arguments_that_no_table_has(arguments: Any, error: Any, text: str) -> None:
    given = {"num_embeddings": 9, "embedding_dim": 4, "optimizer": "adam"} | arguments
    with pytest.raises(error, match=text):
        SparseEmbedding(**given)


def test_modules_and_weights_of_other_kinds() -> None:
    cases: list[tuple[Any, Any, str]] = [
        (lambda: SparseEmbedding.from_pretrained(torch.ones(3)), InvalidArgumentError, r"\(3,\)"),
        (lambda: SparseEmbeddingBag.from_pretrained([[1.0]]), ArgumentTypeError, "got list"),  # type: ignore[arg-type]
        (
            lambda: SparseEmbedding.from_embedding(nn.EmbeddingBag(3, 2)),  # type: ignore[arg-type]
            ArgumentTypeError,
            "must be an nn.Embedding, got EmbeddingBag",
        ),
        (
            lambda: SparseEmbeddingBag.from_embedding(nn.Linear(3, 2)),  # type: ignore[arg-type]
            ArgumentTypeError,
            "must be an nn.EmbeddingBag, got Linear",
        ),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
    counted = nn.Embedding(3, 2, scale_grad_by_freq=True)
    assert not SparseEmbedding.from_embedding(counted, optimizer=None).sparse
    plain = SparseEmbedding(3, 2)
    fused = SparseEmbedding.from_embedding(plain, optimizer="sgd")  # type: ignore[arg-type]
    assert torch.equal(fused.eval()(torch.arange(3)), plain.weight)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1],), ArgumentTypeError, "ids must be a tensor, got list"),
        ((torch.ones(1, 1).long().to_sparse(),), ArgumentTypeError, "ids must be a dense tensor"),
        ((torch.tensor([1]), [0]), ArgumentTypeError, "offsets must be a tensor, got list"),
        ((torch.tensor([1]), torch.zeros(1)), ArgumentTypeError, "offsets must be int64 or int32"),
        ((torch.tensor([1]), torch.tensor(0)), InvalidArgumentError, "offsets must be 1-D"),
        (
            (torch.tensor([1]), torch.tensor([0], device="meta")),
            InvalidArgumentError,
            "the offsets are on meta, the ids are on cpu",
        ),
        (
            (torch.tensor([1, 2]), torch.tensor([]).long()),
            InvalidArgumentError,
            "they are empty, so none of the 2 ids is in a bag",
        ),
        ((torch.tensor([[1]]), None, [1.0]), ArgumentTypeError, "weights must be a tensor"),
        (
            (torch.tensor([[1]]), None, torch.ones(1, 1, dtype=torch.complex64)),
            ArgumentTypeError,
            "per_sample_weights must be floating-point",
        ),
        (
            (torch.tensor([[1]]), None, torch.ones(1, 1, device="meta")),
            InvalidArgumentError,
            "per_sample_weights are on meta",
        ),
    ],
)
def test_inputs_of_bags_that_are_refused(arguments: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        SparseEmbeddingBag(9, 4, mode="sum", optimizer="sgd")(*arguments)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_ids_are_refused() -> None:
    ids = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])])
    with pytest.raises(ArgumentTypeError, match="ids must be a dense tensor, got a nested tensor"):
        SparseEmbedding(9, 4, optimizer="sgd")(ids)


def test_no_ids_may_be_in_no_bags() -> None:
    bag, nothing = SparseEmbeddingBag(9, 4, optimizer="sgd"), torch.tensor([]).long()
    output = bag(nothing, nothing)
    output.sum().backward()
    assert output.shape == (0, 4)
    assert bag.stats().rows_in_use == 0


def test_tables_on_the_cpu_where_the_default_device_is_another() -> None:
    with torch.device("meta"):
        table = SparseEmbedding(3, 2, optimizer="sgd", device="cpu")
        table.reset_parameters()
        bag = SparseEmbeddingBag.from_embedding(
            nn.EmbeddingBag(3, 2, device="cpu"), optimizer="sgd"
        )
        for module, ids in ((table, [1, 2]), (bag, [[1, 2]])):
            module(torch.tensor(ids, device="cpu")).sum().backward()
            module.load_state_dict(module.state_dict())
            module.apply_changes(module.changes())
            assert module.stats().rows_in_use > 0


def test_a_fused_table_takes_no_weight() -> None:
    table = SparseEmbedding(3, 2, optimizer="sgd")
    weight = nn.Parameter(torch.ones(3, 2))
    for change in (
        lambda: setattr(table, "weight", weight),
        lambda: torch.func.functional_call(table, {"weight": weight}, torch.tensor([1])),
    ):
        with pytest.raises(AttributeError, match=r"no weight to set.*load_state_dict\({'weight'"):
            change()
    table.load_state_dict({"weight": weight})
    assert torch.equal(table.eval()(torch.arange(3)), weight)


def test_collections_say_what_they_need() -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd")
    tables = SparseEmbeddingCollection({"a": table})
    ids = torch.tensor([1])
    cases: list[tuple[Any, Any, str]] = [
        (lambda: SparseEmbeddingCollection({"items": table}), InvalidArgumentError, "'items'"),
        (lambda: SparseEmbeddingCollection({"a.b": table}), InvalidArgumentError, "named 'a.b'"),
        (lambda: SparseEmbeddingCollection([table]), ArgumentTypeError, "got list"),  # type: ignore[arg-type]
        (lambda: tables(ids), ArgumentTypeError, "must be a dict from each of .* got Tensor"),
        (lambda: tables({"a": None}), ArgumentTypeError, "needs ids or a sequence"),
        (lambda: tables({"a": (ids, ids)}), ArgumentTypeError, "needs one to 1 arguments"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()


def test_shared_memory_is_refused() -> None:
    model = nn.Sequential(SparseEmbedding(9, 4, optimizer="sgd"))
    with pytest.raises(TableUsageError, match="cannot be in shared memory"):
        model.share_memory()


def test_accumulating_checks_its_arguments_first() -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd")
    cases: list[tuple[dict[str, Any], Any, str]] = [
        ({"max_norm": -1.0}, InvalidArgumentError, "max_norm must not be negative"),
        ({"max_norm": NAN}, InvalidArgumentError, "max_norm must not be negative, got nan"),
        ({"max_norm": "x"}, ArgumentTypeError, "max_norm must be a number"),
        ({"max_norm": "1"}, ArgumentTypeError, "max_norm must be a number, got '1'"),
        ({"max_norm": True}, ArgumentTypeError, "max_norm must be a number, got True"),
        ({"scaler": 1}, ArgumentTypeError, "scaler must be"),
    ]
    for module in (table, SparseEmbeddingCollection({"item": table})):
        for arguments, error, text in cases:
            with pytest.raises(error, match=text):
                module.accumulate(**arguments)  # before the block is entered
