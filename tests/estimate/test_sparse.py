"""Sparse gradients of embeddings: what PyTorch's sources say that a GPU allocates.

``tests/gpu/test_estimate_calls_cuda.py`` holds the same calls against a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.estimated_calls import CALLS
from helpers.phases import changes_in

from vramkit.errors import UntraceableError
from vramkit.estimate import estimate, find_target
from vramkit.estimate._ops._cub import merge_sort_bytes, unique_bytes
from vramkit.estimate._recorder import Kind, Trace
from vramkit.estimate._trace import trace

# Adagrad makes sparse tensors, of which PyTorch warns once that it does not check them.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

_H100 = find_target("h100")
_ROWS, _WIDTH, _COUNT = 1000, 16, 40
_VALUES, _INDICES = _COUNT * _WIDTH * 4, _COUNT * 8

Optimizer = Callable[[Any], torch.optim.Optimizer]


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def _training(
    optimizer: Optimizer = torch.optim.SparseAdam,
    ids: Callable[[], Any] = lambda: torch.randint(0, _ROWS, (8, 5), device="cuda"),
    loss: Callable[[Any], Any] = lambda out: out.square().sum(),
    **options: Any,
) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        table = torch.nn.Embedding(_ROWS, _WIDTH, sparse=True, device="cuda", **options)
        update, looked_up = optimizer(list(table.parameters())), ids()

        def step() -> None:
            loss(table(looked_up)).backward()
            update.step()
            update.zero_grad()

        return step

    return make_step


def _update(found: Trace, step: int, name: str) -> list[int]:
    """What a step allocates from an operator on."""
    ends = [*found.step_starts, len(found.changes)]
    blocks = [found.blocks[c if c >= 0 else ~c] for c in found.changes[ends[step] : ends[step + 1]]]
    start = next(place for place, block in enumerate(blocks) if block.operator == name)
    return changes_in(found, step)[start:]


def test_a_gradient_is_the_memory_of_the_gradient_that_came() -> None:
    found = trace(_training(_sgd), target=_H100, steps=2)
    sizes = [each.size_bytes for each in found.blocks if each.step == 1]
    assert sizes.count(_VALUES) == 5  # looked up, squared, and three in the gradient of the square
    assert _INDICES not in sizes
    assert found.assumptions == {}
    [gradient] = [each for each in found.blocks if each.step == 1 and each.kind is Kind.GRADIENT]
    assert gradient.size_bytes == _VALUES


def test_an_expanded_gradient_is_copied_with_its_indices() -> None:
    found = trace(_training(_sgd, loss=lambda out: out.sum()), target=_H100, steps=1)
    copied = [each.size_bytes for each in found.blocks if each.operator == "aten::clone"]
    assert copied == [_VALUES, _INDICES]


def test_sparse_adam_sorts_and_masks() -> None:
    found = trace(_training(), target=_H100, steps=2)
    sort, unique = merge_sort_bytes(_COUNT), unique_bytes(_COUNT)
    added_up = [
        *(_INDICES, _INDICES, _INDICES, sort, -sort, unique, -unique),
        *(_VALUES, -_INDICES, -_INDICES),
    ]
    masked = [4, _VALUES, _INDICES, _VALUES, -_VALUES, -4, -_INDICES]
    changes = _update(found, 1, "aten::_coalesce")
    assert changes[:10] == added_up
    assert changes[10:17] == masked
    assert changes[17:25] == [_VALUES, *masked]
    assert sum(each.kind is Kind.OPTIMIZER_STATE for each in found.blocks) == 2


def test_rows_that_are_known_are_counted() -> None:
    known = trace(
        _training(ids=lambda: torch.arange(_COUNT).remainder(7).view(8, 5).cuda()),
        target=_H100,
        steps=2,
    )
    assert _update(known, 1, "aten::_coalesce")[7] == 7 * _WIDTH * 4
    assert known.assumptions == {}


def test_rows_that_are_not_known_are_bounded_and_the_report_says_so() -> None:
    found = estimate(step=_training(torch.optim.Adagrad))
    [(sentence, count)] = found.trace.assumptions.items()
    assert "has 40 different rows, the most of 40 that were looked up" in sentence
    assert "test_sparse.py:" in sentence
    assert count == 3
    assert sentence in str(found)
    many = trace(
        _training(ids=lambda: torch.randint(0, _ROWS, (64, 64), device="cuda")),
        target=_H100,
        steps=1,
    )
    assert "has 1,000 different rows, the most of 4,096" in next(iter(many.assumptions))
    assert _ROWS * _WIDTH * 4 in _update(many, 0, "aten::_coalesce")


def test_one_row_is_added_up_by_a_copy() -> None:
    found = trace(
        _training(ids=lambda: torch.zeros(1, dtype=torch.int64, device="cuda")),
        target=_H100,
        steps=1,
    )
    assert not [each for each in found.blocks if each.operator == "aten::_coalesce"]
    assert found.assumptions == {}


def test_rows_of_joined_gradients_are_counted() -> None:
    def make_step() -> Callable[[], None]:
        table = torch.nn.Embedding(_ROWS, _WIDTH, sparse=True, device="cuda")
        update = torch.optim.Adagrad(list(table.parameters()))
        ids = torch.arange(_COUNT).view(8, 5).cuda()

        def step() -> None:
            for batch in (ids, ids + _COUNT // 2):
                table(batch).square().sum().backward()
            update.step()
            update.zero_grad()

        return step

    found = trace(make_step, target=_H100, steps=1)
    assert _update(found, 0, "aten::_coalesce")[7] == (_COUNT + _COUNT // 2) * _WIDTH * 4
    assert found.assumptions == {}


def test_two_uses_of_a_table_are_joined() -> None:
    def make_step() -> Callable[[], None]:
        table = torch.nn.Embedding(_ROWS, _WIDTH, sparse=True, device="cuda")
        ids = torch.randint(0, _ROWS, (2, 8, 5), device="cuda")

        def step() -> None:
            table.zero_grad()
            (table(ids[0]).square().sum() + table(ids[1]).square().sum()).backward()
            assert table.weight.grad._nnz() == 2 * _COUNT
            table(ids[0]).square().sum().backward()
            gradient = table.weight.grad
            assert gradient._nnz() == 3 * _COUNT
            assert (gradient.sparse_dim(), gradient.dense_dim()) == (1, 1)
            assert not gradient.is_coalesced()
            assert gradient.coalesce().is_coalesced()

        return step

    found = trace(make_step, target=_H100, steps=2)
    for operator, uses in (("aten::add.Tensor", 2), ("aten::add_.Tensor", 3)):
        joined = [each for each in found.blocks if each.operator == operator and each.step == 1]
        sizes = [each.size_bytes for each in joined if each.size_bytes > 4]
        assert sizes == [uses * _INDICES, uses * _VALUES]


def test_a_padding_is_chosen_by_a_mask() -> None:
    found = trace(_training(_sgd, padding_idx=3), target=_H100, steps=1)
    chosen = [each.size_bytes for each in found.blocks if each.operator == "aten::index.Tensor"]
    found_by = [4, 1, 2 * _COUNT * 8, 1023]
    assert chosen == [*found_by, _INDICES, *found_by, _VALUES]
    assert "is that of the padding" in next(iter(found.assumptions))


def test_a_padding_whose_place_is_known_is_counted() -> None:
    def ids() -> Any:
        return torch.arange(_COUNT).remainder(10).view(8, 5).cuda()

    found = trace(_training(padding_idx=3, ids=ids), target=_H100, steps=1)
    chosen = [each.size_bytes for each in found.blocks if each.operator == "aten::index.Tensor"]
    count = _COUNT - _COUNT // 10
    assert chosen[4] == count * 8
    assert chosen[9] == count * _WIDTH * 4
    assert _update(found, 0, "aten::_coalesce")[7] == 9 * _WIDTH * 4
    assert found.assumptions == {}


def test_the_padding_is_chosen_only_in_the_backward_pass() -> None:
    with pytest.raises(UntraceableError, match="size depends on the data"):
        trace(
            lambda: lambda: torch.randn(8, device="cuda")[torch.randn(8, device="cuda") > 0],
            target=_H100,
            steps=1,
        )


@pytest.mark.parametrize(("mode", "divides"), [("sum", False), ("mean", True)])
def test_bags(mode: str, divides: bool) -> None:
    def make_step() -> Callable[[], None]:
        bags = torch.nn.EmbeddingBag(_ROWS, _WIDTH, mode=mode, sparse=True, device="cuda")
        ids = torch.randint(0, _ROWS, (8, 5), device="cuda")

        def step() -> None:
            bags(ids).square().sum().backward()
            assert bags.weight.grad._nnz() == _COUNT

        return step

    found = trace(make_step, target=_H100, steps=1)
    operators = [each.operator for each in found.blocks if each.step == 0]
    assert operators.count("aten::index_select") == 1 + divides
    assert ("aten::reciprocal" in operators) == divides
    assert found.assumptions == {}


@pytest.mark.parametrize("known", [False, True])
def test_bags_with_a_padding(known: bool) -> None:
    def make_step() -> Callable[[], None]:
        bags = torch.nn.EmbeddingBag(_ROWS, _WIDTH, padding_idx=3, sparse=True, device="cuda")
        ids = torch.randint(0, _ROWS, (8, 5), device="cuda")
        if known:
            ids = torch.arange(_COUNT).remainder(10).view(8, 5).cuda()

        def step() -> None:
            bags(ids).square().sum().backward()
            assert bags.weight.grad._nnz() == _COUNT - known * _COUNT // 10

        return step

    assert len(trace(make_step, target=_H100, steps=1).assumptions) == (not known)


@pytest.mark.parametrize(
    ("use", "operator"),
    [
        (lambda table: table.weight.grad * 2, "aten::mul.Tensor"),
        (lambda table: -table.weight.grad, "aten::neg"),
        (lambda table: table.weight.grad.to_dense(), "aten::_to_dense"),
        (lambda table: table.weight + table.weight.grad, "aten::add.Tensor"),
        (lambda table: torch.nn.utils.clip_grad_norm_([table.weight], 1.0), "aten::"),
    ],
)
def test_what_is_not_followed_is_refused(use: Callable[[Any], Any], operator: str) -> None:
    def make_step() -> Callable[[], None]:
        table = torch.nn.Embedding(_ROWS, _WIDTH, sparse=True, device="cuda")
        ids = torch.randint(0, _ROWS, (8, 5), device="cuda")

        def step() -> None:
            table(ids).square().sum().backward()
            with torch.no_grad():
                use(table)

        return step

    with pytest.raises(UntraceableError, match=rf"{operator}.*test_sparse\.py:\d+ takes a sparse"):
        trace(make_step, target=_H100, steps=1)


def test_momentum_is_refused() -> None:
    def with_momentum(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    with pytest.raises(UntraceableError, match="SGD without momentum"):
        trace(_training(with_momentum), target=_H100, steps=1)


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("sparse ")])
def test_the_calls_that_a_gpu_is_to_record(name: str) -> None:
    make_step, steps = CALLS[name]
    found = trace(make_step, target=_H100, steps=steps)
    assert found.unknown == ()
    assert found.guesses == {}
    live = found.events().peak_live_bytes
    table = 5000 * 32 * 4
    assert table < live < 5 * table
