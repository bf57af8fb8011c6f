"""Which rows and weights get a gradient, and when none may be applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vramkit.errors import InvalidArgumentError, TableUsageError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag

pytestmark = pytest.mark.usefixtures("tables", "lookup_node")

IDS, STARTS = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 2])


def _bag(**options: Any) -> SparseEmbeddingBag:
    return SparseEmbeddingBag(None, 3, **({"optimizer": "sgd", "lr": 1.0, "mode": "sum"} | options))


def _rows(module: nn.Module, ids: Tensor) -> Tensor:
    module.eval()
    found: Tensor = module(ids, torch.arange(len(ids)))
    module.train()
    return found


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("offsets", [torch.tensor([0, 0, 3, 4]), None])
def test_weights_of_limited_rows_in_evaluation(offsets: Tensor | None, padding: Any) -> None:
    bag = _bag(max_norm=0.5, padding_idx=padding).eval()
    ids = IDS if offsets is not None else IDS.view(2, 2)
    weights = torch.rand(ids.shape, requires_grad=True)
    bag(ids, offsets, weights).sum().backward()
    wanted = _rows(bag, IDS).sum(1) * ((-1 if padding is None else padding) != IDS)
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad.view(-1), wanted)


def test_weights_whose_rows_have_been_evicted() -> None:
    bag = _bag(budget=3000, when_full="evict_lru")
    capacity = bag.stats().capacity
    assert capacity is not None
    bag(IDS, STARTS).sum().backward()
    weights = torch.ones(4, requires_grad=True)
    output = bag(IDS, STARTS, weights)
    wanted = _rows(bag, IDS).sum(1)
    bag(torch.arange(100, 100 + capacity), STARTS[:1])
    output.sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, wanted)


def test_rows_that_evaluation_read_before_an_update() -> None:
    bag = _bag()
    weights = torch.ones(4, requires_grad=True)
    output = bag.eval()(IDS, STARTS, weights)
    bag.train()(IDS, STARTS).sum().backward()
    with pytest.raises(TableUsageError, match="updated since forward"):
        output.sum().backward()


def test_a_gradient_of_something_else_updates_no_row() -> None:
    bag = _bag()
    weights = torch.ones(4, requires_grad=True)
    output = bag(IDS, STARTS, weights)
    before = _rows(bag, IDS)
    torch.autograd.grad(output.sum(), [weights], retain_graph=True)
    output.sum().backward(retain_graph=True, inputs=[weights])
    assert torch.equal(_rows(bag, IDS), before)
    output.sum().backward()
    torch.testing.assert_close(_rows(bag, IDS), before - 1.0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_inputs_that_are_changed_before_backward(number: int) -> None:
    given: list[Tensor] = [IDS.clone(), STARTS.clone(), torch.ones(4)]
    bag = _bag()
    output = bag(*given)
    given[number].fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_accumulating_keeps_what_a_batch_was() -> None:
    bag, wanted = _bag(seed=1), _bag(seed=1)
    given: list[Tensor] = [IDS.clone(), STARTS.clone(), torch.rand(4)]
    wanted(*(part.clone() for part in given)).sum().backward()
    with bag.accumulate():
        bag(*given).sum().backward()
        for part in given:
            part.fill_(1)
    assert torch.equal(_rows(bag, IDS), _rows(wanted, IDS))


def test_accumulating_keeps_what_a_gradient_was() -> None:
    table = SparseEmbedding(None, 2, optimizer="sgd", lr=1.0, init_std=0.0)
    grad = torch.empty(1, 2)
    with table.accumulate():
        for key in (1, 2):
            table(torch.tensor([key])).backward(grad.fill_(key))
    assert table.eval()(torch.tensor([1, 2])).tolist() == [[-1.0, -1.0], [-2.0, -2.0]]


def test_a_scale_that_changes_while_gradients_are_held() -> None:
    table, weight = SparseEmbedding(None, 2, optimizer="sgd", lr=1.0, init_std=0.0), torch.ones(2)
    adam = torch.optim.Adam([weight.requires_grad_()])
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    with table.accumulate(scaler=scaler):
        scaler.scale((table(torch.tensor([1])) * weight.clamp(1)).sum()).backward()
        scaler.step(adam)
        scaler.update()
    assert scaler.get_scale() == 128.0
    assert table.eval()(torch.tensor([1])).tolist() == [[-1.0, -1.0]]


def test_ids_of_inference_mode() -> None:
    with torch.inference_mode():
        ids = torch.tensor([[1, 2]])
    bag = _bag()
    bag(ids).sum().backward()
    assert bag.stats().rows_in_use == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.load_state_dict(dict(table.state_dict())),
        lambda table: table.half(),
        lambda table: table.reset_parameters(),
    ],
)
def test_gradients_of_former_rows_are_refused(change: Callable[[Any], Any]) -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd")
    output = table(torch.tensor([1]))
    change(table)
    with pytest.raises(TableUsageError, match="call forward again before backward"):
        output.sum().backward()


def test_rows_stay_while_gradients_are_held() -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd")
    with table.accumulate():
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(InvalidArgumentError, match=r"accumulate\(\) is active"):
            table.half()
        with pytest.raises(RuntimeError, match=r"accumulate\(\) is active"):
            table.load_state_dict(dict(table.state_dict()))


def test_clipping_gradients_that_are_not_finite() -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd", lr=1.0)
    ids = torch.tensor([1, 2])
    before = table.eval()(ids)
    output = table.train()(ids)
    with pytest.warns(RuntimeWarning, match="not finite"), table.accumulate(max_norm=1.0):
        output.backward(torch.tensor([[float("nan")] * 4, [100.0] * 4]))
    assert torch.equal(table.eval()(ids), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_int8_rows_show_values_that_are_not_finite(value: float) -> None:
    table = SparseEmbedding(9, 40, optimizer="sgd", dtype=torch.int8)
    gradient = torch.zeros(1, 40)
    gradient[0, 7] = value
    for of in (gradient, torch.zeros(1, 40)):
        table(torch.tensor([3])).backward(of)
        assert table.eval()(torch.tensor([3])).isnan().all()
        assert table(torch.tensor([4])).isfinite().all()
        table.train()


def test_hit_rates_of_tables_that_evict() -> None:
    table = SparseEmbedding(None, 3, optimizer="sgd", budget=3000, when_full="evict_lru")
    capacity = table.stats().capacity
    assert capacity is not None
    for first in range(0, 4 * capacity, capacity):
        table(torch.arange(first, first + capacity))
    assert table.stats().hit_rate == 0.0
    table(torch.arange(3 * capacity, 4 * capacity))
    assert table.stats().hit_rate == pytest.approx(0.2)


def test_gradients_of_evicted_rows_are_counted() -> None:
    table = SparseEmbedding(
        None, 4, optimizer="sgd", budget=5000, when_full="evict_lru", padding_idx=-7
    )
    most = table.stats().capacity
    assert most is not None
    ids = torch.arange(most)
    rows = table(torch.cat([ids, ids[:3], torch.tensor([-7])]))
    table(torch.arange(1000, 1000 + most - 2))
    gone = ~torch.isin(ids, table.keys())
    assert gone.sum() == most - 2
    assert table.stats().lost_gradients == 0
    with table.accumulate(max_norm=1.0):
        rows.sum().backward()
    assert table.stats().lost_gradients == gone.sum() + gone[:3].sum()
