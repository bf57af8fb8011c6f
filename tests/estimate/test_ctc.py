"""Connectionist temporal classification: what PyTorch's sources say that a GPU allocates.

``tests/gpu/test_estimate_calls_cuda.py`` holds the same calls against a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.estimated_calls import CALLS
from torch.nn import functional

from vramkit.errors import UntraceableError
from vramkit.estimate import estimate, find_target
from vramkit.estimate._recorder import Trace
from vramkit.estimate._trace import trace

_H100 = find_target("h100")
_STEPS, _BATCH, _LABELS, _LENGTH = 50, 16, 20, 12
_PROBABILITIES = _STEPS * _BATCH * _LABELS * 4
_SUMS = _BATCH * _STEPS * (2 * _LENGTH + 1) * 4
_LENGTHS = _BATCH * 8
_LOSSES = _BATCH * 4


def _step(
    *,
    targets: Callable[[Any], Any] = lambda x: x,
    lengths: Callable[[Any], Any] = lambda x: x,
    steps: int = _STEPS,
    backward: bool = False,
    **options: Any,
) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        shape = (steps, _BATCH, _LABELS)
        x = torch.randn(shape, device="cuda", requires_grad=True)
        wanted = targets(torch.ones(_BATCH, _LENGTH, dtype=torch.int64, device="cuda"))
        inputs = lengths(torch.full((_BATCH,), steps))
        outputs = lengths(torch.full((_BATCH,), _LENGTH))
        losses: list[Any] = []
        if backward:
            losses.append(functional.ctc_loss(x, wanted, inputs, outputs, **options))
            gradient = torch.ones_like(losses[0])

            def pull() -> None:
                losses.pop().backward(gradient)

            return pull
        return lambda: losses.append(functional.ctc_loss(x, wanted, inputs, outputs, **options))

    return make_step


def _changes(found: Trace) -> list[int]:
    """Blocks taken (+) and dropped (-) in the step."""
    return [
        found.blocks[change].size_bytes if change >= 0 else -found.blocks[~change].size_bytes
        for change in found.changes[found.step_starts[0] :]
    ]


def _traced(**options: Any) -> Trace:
    return trace(_step(**options), target=_H100, steps=1)


_LOSS = [_LENGTHS, _LENGTHS, _LENGTHS, _SUMS, _LOSSES, -_LENGTHS, -_LENGTHS, -_LENGTHS]


def test_the_losses_keep_the_sums() -> None:
    assert _changes(_traced(reduction="none")) == _LOSS


def test_the_mean_keeps_the_lengths_for_the_gradient() -> None:
    mean = [_LOSSES, _LOSSES, -_LOSSES, _LOSSES, 4, -_LOSSES]
    assert _changes(_traced(reduction="mean")) == [*_LOSS, *mean]


def test_infinite_losses_are_looked_for() -> None:
    found = _changes(_traced(reduction="sum", zero_infinity=True))
    assert found == [*_LOSS, 4, _BATCH, _LOSSES, -4, 4, -_LOSSES]


@pytest.mark.parametrize(
    "lengths",
    [lambda x: x, lambda x: x.cuda(), lambda x: x.int(), lambda x: x.tolist()],
    ids=["cpu", "cuda", "int32", "lists"],
)
def test_lengths_come_in_any_way(lengths: Callable[[Any], Any]) -> None:
    assert _changes(_traced(reduction="none", lengths=lengths)) == _LOSS


def test_targets_of_the_host_are_copied_and_kept() -> None:
    found = _changes(_traced(reduction="none", targets=lambda x: x.cpu().int()))
    assert found == [_BATCH * _LENGTH * 8, *_LOSS]


def test_targets_in_a_row_need_what_padded_ones_need() -> None:
    assert _changes(_traced(reduction="none", targets=lambda x: x.flatten())) == _LOSS


def test_the_longest_target_counts() -> None:
    def lengths(x: Any) -> Any:
        return torch.where(torch.arange(_BATCH) > 2, x, x - 4)

    assert _changes(_traced(reduction="none", lengths=lengths)) == _LOSS
    shorter = _changes(_traced(reduction="none", lengths=lambda x: x - 4))
    assert shorter[3] == _BATCH * _STEPS * (2 * (_LENGTH - 4) + 1) * 4


def test_the_gradient_of_a_small_problem() -> None:
    found = _changes(_traced(reduction="none", backward=True))
    start = [_LENGTHS, _LENGTHS, _LENGTHS, _SUMS, _PROBABILITIES, -_SUMS]
    assert found[:9] == [*start, -_LENGTHS, -_LENGTHS, -_LENGTHS]
    assert found.count(_SUMS) == 1
    assert found.count(-_SUMS) == 2  # what the forward pass kept dies, too


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_the_gradient_of_a_large_problem(zero_infinity: bool) -> None:
    """Blanks are subtracted apart: 2 x 300 + 24 x 16 / 10 + 2 x 20 / 10 is above 450."""
    steps = 300
    sums, gradient = _SUMS * steps // _STEPS, _PROBABILITIES * steps // _STEPS
    blanks = _BATCH * steps * (_LENGTH + 1) * 4
    options = {"reduction": "none", "steps": steps, "zero_infinity": zero_infinity}
    found = _changes(_traced(backward=True, **options))
    if zero_infinity:  # the gradient of the choice comes first
        found = found[found.index(_LENGTHS) :]
    assert found[:6] == [*[_LENGTHS] * 3, sums, gradient, blanks]
    assert found.count(blanks) == 2  # and the powers, inside the sum of them
    assert found.count(gradient) == (2 if zero_infinity else 1)


def test_lengths_that_depend_on_data_count_as_the_width_of_the_targets() -> None:
    def lengths(x: Any) -> Any:
        return (torch.rand(_BATCH, device="cuda") * x[0]).long()

    found = estimate(step=_step(reduction="none", lengths=lengths), steps=1)
    assert _changes(found.trace) == _LOSS
    [(sentence, count)] = found.trace.assumptions.items()
    assert "has a target of the full length, 12" in sentence
    assert count == 1
    with pytest.raises(
        UntraceableError, match=r"test_ctc\.py:\d+ calls ctc_loss with lengths that"
    ):
        _traced(lengths=lengths, targets=lambda x: x.flatten())


def _in_a_row(x: Any) -> Any:
    return x.cpu().int().flatten()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "aten::_cudnn_ctc_loss"),
        ({"lengths": lambda x: x.int()}, "aten::_cudnn_ctc_loss.Tensor"),
        ({"blank": 2}, None),
        ({"targets": lambda x: x.cpu().flatten()}, None),
        ({"targets": lambda x: x.cpu().int()}, None),
        ({"steps": _LENGTH - 1, "lengths": lambda x: x.int()}, None),
        ({"lengths": lambda x: torch.where(x > _LENGTH, x - 1, x)}, None),
    ],
    ids=["lists", "tensors", "blank", "int64", "padded", "short", "unequal"],
)
def test_when_cudnn_takes_the_call(options: dict[str, Any], name: str | None) -> None:
    usual = {"targets": _in_a_row, "reduction": "sum"}
    assert _traced(**{**usual, **options}).unknown == ((name,) if name else ())


def test_cudnn_may_be_switched_off() -> None:
    options = {"targets": _in_a_row, "reduction": "none"}
    with torch.backends.cudnn.flags(enabled=False):
        assert _traced(**options).unknown == ()
    assert _traced(**options).unknown == ("aten::_cudnn_ctc_loss",)


def test_a_single_sequence() -> None:
    def make_step() -> Callable[[], Any]:
        x = torch.randn(_STEPS, _LABELS, device="cuda", requires_grad=True)
        wanted = torch.ones(_LENGTH, dtype=torch.int64, device="cuda")

        def step() -> None:
            lengths = torch.tensor(_STEPS), torch.tensor(_LENGTH)
            loss = torch.nn.CTCLoss(reduction="none")(x, wanted, *lengths)
            assert loss.shape == ()
            loss.backward()

        return step

    found = trace(make_step, target=_H100, steps=1)
    assert _STEPS * (2 * _LENGTH + 1) * 4 in _changes(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": lambda x: x[:4]}, "must be of size batch_size"),
        ({"targets": lambda x: x[:, :4]}, "at least 12 at dimension 1"),
        ({"blank": _LABELS}, "blank must be in label range"),
    ],
)
def test_what_a_gpu_refuses_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _traced(**options)


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("ctc ")])
def test_the_calls_that_a_gpu_is_to_record(name: str) -> None:
    make_step, steps = CALLS[name]
    found = trace(make_step, target=_H100, steps=steps)
    assert found.unknown == ()
    assert found.guesses == found.assumptions == {}
