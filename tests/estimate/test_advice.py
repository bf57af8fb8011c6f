"""Advice: each change is tried and ranked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import vramkit
from vramkit.estimate import Estimate, find_target

_MIB = 1 << 20
_OUTSIDE = find_target("h100").outside_bytes


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(512, 2048), torch.nn.Linear(2048, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


@pytest.fixture(scope="module")
def heavy() -> Estimate:
    model = torch.nn.Sequential(*[_Block() for _ in range(6)])
    return vramkit.estimate(model, torch.empty(8192, 512), optimizer="adamw", steps=2)


def test_changes_are_ranked_by_what_they_save(heavy: Estimate) -> None:
    budget = heavy.device_bytes - 200 * _MIB
    advice = heavy.advice(budget)
    assert not advice.fits_already
    fitting = [each for each in advice.proposals if each.fits]
    assert [each.fits for each in advice.proposals] == sorted(
        (each.fits for each in advice.proposals), reverse=True
    )
    saved = [each.saved_bytes for each in fitting]
    assert saved == sorted(saved, reverse=True)
    changes = {each.change for each in fitting}
    assert {"checkpoint each block", "bf16 autocast", "halve the batch to 4,096"} <= changes
    assert all(each.device_bytes + each.saved_bytes == heavy.device_bytes for each in fitting)


def test_the_largest_batch_is_the_largest(heavy: Estimate) -> None:
    budget = _OUTSIDE + 500 * _MIB
    largest = heavy.advice(budget).largest_batch
    assert largest is not None
    model = torch.nn.Sequential(*[_Block() for _ in range(6)])
    for batch, fits in ((largest, True), (largest + 1, False)):
        found = vramkit.estimate(model, torch.empty(batch, 512), optimizer="adamw", steps=2)
        assert found.fits(budget) is fits


def test_what_fits_needs_no_smaller_batch(heavy: Estimate) -> None:
    advice = heavy.advice("80GiB")
    assert (advice.fits_already, advice.largest_batch) == (True, None)
    assert "fits as it is" in str(advice)


def test_a_step_of_one_s_own_can_take_the_batch() -> None:
    def make_step(batch_size: int = 64) -> Callable[[], None]:
        def step() -> None:
            torch.empty(batch_size * _MIB, dtype=torch.uint8, device="cuda")

        return step

    advice = vramkit.estimate(step=make_step, steps=1).advice(_OUTSIDE + 40 * _MIB)
    assert advice.largest_batch == 40
    assert "largest batch that fits: 40" in str(advice)
    assert [each.change for each in advice.proposals if each.fits] == ["halve the batch to 32"]


def test_channels_last_is_tried_for_images() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.BatchNorm2d(64))
    found = vramkit.estimate(
        model.bfloat16(), torch.empty(8, 64, 64, 64, dtype=torch.bfloat16), train=True, steps=1
    )
    assert "channels_last" in {each.change for each in found.advice("80GiB").proposals}


def test_changes_with_which_the_step_raises_are_told() -> None:
    labels = torch.zeros(8, dtype=torch.int64)

    def loss(output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(output, labels.to(output.device))

    found = vramkit.estimate(torch.nn.Linear(64, 64), torch.empty(8, 64), loss=loss, steps=1)
    advice = found.advice("1MiB")
    assert advice.largest_batch is None
    assert [each.partition(" (")[0] for each in advice.failed] == [
        *("halve the batch to 4", "a batch of 4", "a batch of 6", "a batch of 7")
    ]
    assert "could not be tried: a batch of 7 (ValueError: Expected input batch_size (7)" in str(
        advice
    )
    assert advice.as_dict()["failed"] == advice.failed


def test_a_batch_that_is_too_small_for_the_model_is_no_answer() -> None:
    width = 16 * _MIB  # 64 MiB a sample
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.BatchNorm1d(8))
        samples = torch.empty(8, width)
    found = vramkit.estimate(model, samples, optimizer="sgd", steps=1)
    middle = vramkit.estimate(model, samples[:5], optimizer="sgd", steps=1)
    assert found.advice(middle.device_bytes).largest_batch in range(2, 8)
    none = found.advice("1MiB")
    assert none.largest_batch == 0
    assert none.failed[-1].startswith("a batch of 1 (ValueError: Expected more than 1 value")


def test_values_that_steer_a_model_stay_known_in_a_smaller_batch() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4096, 4096)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            chosen: torch.Tensor = x[mask.bool()] if not mask.all() else x
            return torch.nn.functional.gelu(self.layer(chosen))

    mask = torch.tensor([1, 0]).repeat(1024)
    found = vramkit.estimate(
        Model(), {"x": torch.empty(2048, 4096), "mask": mask}, optimizer="sgd", steps=1
    )
    advice = found.advice(found.device_bytes - 30 * _MIB)
    assert not advice.failed
    assert "halve the batch to 1,024" in {each.change for each in advice.proposals if each.fits}
    assert advice.largest_batch
