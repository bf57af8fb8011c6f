"""Sizes that follow from known values: places, masks, distinct values, repetitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vramkit.errors import UntraceableError
from vramkit.estimate import find_target
from vramkit.estimate._trace import trace

_H100 = find_target("h100")
_WIDTH = 1000


def sizes(step: Callable[[], Any]) -> list[int]:
    """Return the sizes of the blocks that a step allocates, in order."""
    return [block.size_bytes for block in trace(lambda: step, target=_H100, steps=1).blocks]


def _mask() -> torch.Tensor:
    return ~torch.eye(4, dtype=torch.bool, device="cuda")


@pytest.mark.parametrize(
    ("step", "rows"),
    [
        (lambda: len(torch.tensor([3, 1, 3]).unique()), 2),
        (lambda: len(torch.tensor([3, 1, 3], device="cuda").unique()), 2),
        (lambda: torch.tensor([3, 1, 3]).unique(return_counts=True)[1].amax().item(), 2),
        (lambda: len(torch.tensor([3, 3, 1]).unique_consecutive()), 2),
        (lambda: len(torch.unique(torch.tensor([[1, 2], [1, 2]]), dim=0)), 1),
        (lambda: len(torch.arange(5).repeat_interleave(torch.tensor([1, 0, 2, 0, 3]))), 6),
        (lambda: len(torch.arange(5).masked_select(torch.arange(5) > 1)), 3),
        (lambda: len(torch.arange(5, device="cuda")[torch.arange(5, device="cuda") > 1]), 3),
        (lambda: len(torch.randn(5, 3)[torch.arange(5) > 1]), 3),
    ],
)
def test_sizes_follow_from_known_values(step: Callable[[], int], rows: int) -> None:
    found = sizes(lambda: torch.empty(step(), _WIDTH, device="cuda"))
    assert found[-1] == 4 * _WIDTH * rows


def test_a_known_mask_chooses_as_its_places_do() -> None:
    def by_mask() -> None:
        x, mask = torch.randn(4, 4, _WIDTH, device="cuda"), _mask()
        x[mask]

    def by_places() -> None:
        x, mask = torch.randn(4, 4, _WIDTH, device="cuda"), _mask()
        x[mask.nonzero().unbind(1)]

    assert sizes(by_mask) == sizes(by_places)
    assert sizes(by_mask)[-1] == 4 * _WIDTH * 12


def test_a_mask_beside_other_indices() -> None:
    def step() -> None:
        x = torch.randn(2, 4, 4, 8, device="cuda")
        assert x[:, _mask()].shape == (2, 12, 8)
        assert x[0, :, torch.tensor([True, False, True, False], device="cuda")].shape == (4, 2, 8)

    assert 4 * 2 * 12 * 8 in sizes(step)


def test_a_known_mask_selects_from_unknown_data_of_another_shape() -> None:
    def step() -> None:
        assert torch.randn(3, 4, 4, device="cuda").masked_select(_mask()).shape == (36,)
        with pytest.raises(RuntimeError, match=r"expand|broadcast|must match"):
            torch.randn(3, device="cuda").masked_select(_mask())

    assert 4 * 36 in sizes(step)


def test_the_gradient_of_a_mask_is_added_at_its_places() -> None:
    def step_by(choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> list[int]:
        def step() -> None:
            x = torch.randn(4, 4, _WIDTH, device="cuda", requires_grad=True)
            choose(x, _mask()).sum().backward()
            assert x.grad is not None
            assert x.grad.shape == x.shape

        return sizes(step)

    by_mask = step_by(lambda x, mask: x[mask])
    by_places = step_by(lambda x, mask: x[mask.nonzero().unbind(1)])
    # The mask is kept instead of its places, which are looked for again.
    for size in set(by_places):
        assert by_mask.count(size) >= by_places.count(size)
    assert by_mask.count(8 * 2 * 12) == by_places.count(8 * 2 * 12) + 1


def test_values_are_put_where_a_known_mask_says() -> None:
    def step() -> None:
        x = torch.zeros(4, 4, _WIDTH, device="cuda")
        x[_mask()] = torch.randn(12, _WIDTH, device="cuda")
        x[_mask()] = 1.0

    # Places are looked for once: a number is filled in.
    assert sizes(step).count(8 * 2 * 12) == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave((x > 0).long()),
        lambda x: (x > 0).nonzero(),
    ],
)
def test_what_depends_on_data_is_refused(use: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(UntraceableError, match="so its memory cannot be known"):
        sizes(lambda: use(torch.randn(100, device="cuda")))


@pytest.mark.parametrize(
    "make",
    [
        torch.ones_like,
        lambda x: torch.full_like(x, 7),
        lambda x: ~torch.zeros_like(x, dtype=torch.bool),
        lambda x: x.new_ones(64, 2048),
        lambda x: ~x.float().new_zeros((64, 2048), dtype=torch.bool),
        lambda x: x.new_full((64, 2048), 3),
    ],
)
def test_constants_of_the_shape_of_data_are_known(make: Callable[[Any], Any]) -> None:
    def step() -> None:
        mask = make(torch.randint(0, 9, (64, 2048), device="cuda"))
        assert mask.all()
        mask[:, 0] = 0
        assert not mask.all()
        torch.empty(int(mask.numel()), device="cuda")

    assert sizes(step)[-1] == 4 * 64 * 2048


def test_other_results_of_data_stay_unknown() -> None:
    def step() -> None:
        x = torch.randint(0, 9, (64,), device="cuda")
        y = torch.ones_like(x)
        y += x
        if y.all():
            torch.empty(1 << 20, device="cuda")

    with pytest.raises(UntraceableError, match=r"branches on|reads a value"):
        sizes(step)


@pytest.mark.parametrize("shape", [(8,), (8, 8), (4, 4, 4)])
def test_a_guessed_mask_chooses_all_forward_and_backward(shape: tuple[int, ...]) -> None:
    def make_step(choose: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Any]:
        weight = torch.randn(shape, device="cuda", requires_grad=True)
        return lambda: choose(weight * 2).sum().backward()

    def by_mask(x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]

    def by_known_mask(x: torch.Tensor) -> torch.Tensor:
        return x[torch.ones(shape, dtype=torch.bool, device="cuda")]

    guessed, known = (
        trace(lambda chosen=chosen: make_step(chosen), target=_H100, steps=2, guess="allow")
        for chosen in (by_mask, by_known_mask)
    )
    assert [block.size_bytes for block in guessed.blocks] == [
        block.size_bytes for block in known.blocks
    ]
    assert {where.partition(" at ")[0] for where in guessed.guesses} == {
        "aten::index.Tensor",
        "aten::index_put",
    }


def test_a_guessed_mask_beside_other_indices_and_as_a_target() -> None:
    def step() -> None:
        x = torch.randn(2, 4, 4, device="cuda")
        assert x[:, x[0] > 0].shape == (2, 16)
        x[x > 0] = x[x > 0] * 2
        x.index_put_((x[0] > 0,), torch.ones((), device="cuda"), accumulate=True)

    found = trace(lambda: step, target=_H100, steps=1, guess="allow")
    assert 4 * 2 * 16 in {block.size_bytes for block in found.blocks}
    with pytest.raises(UntraceableError, match="whose size depends on the data"):
        trace(lambda: step, target=_H100, steps=1)
