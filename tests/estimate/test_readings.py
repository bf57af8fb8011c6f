"""Numbers that a step reads from its tensors: what it may do with them, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vramkit.errors import UntraceableError
from vramkit.estimate import estimate, find_target
from vramkit.estimate._recorder import Trace
from vramkit.estimate._trace import trace

_H100 = find_target("h100")


def traced(use: Callable[[Any], Any], **options: Any) -> Trace:
    """Trace a step that is given a tensor of 64 x 64 random numbers."""

    def make_step() -> Callable[[], Any]:
        x = torch.randn(64, 64, device="cuda")

        def step() -> None:
            use(x)

        return step

    return trace(make_step, target=_H100, steps=1, **options)


def read(use: Callable[[Any, Any], Any]) -> Trace:
    """Trace a step that reads a float and an integer."""
    return traced(lambda x: use((x * x).sum().item(), (x > 0).sum().item()))


def test_a_training_that_logs_its_loss_needs_what_one_without_needs() -> None:
    lines: list[str] = []

    def make(log: bool) -> Callable[[], Callable[[], None]]:
        def make_step() -> Callable[[], None]:
            layer = torch.nn.Linear(256, 256, device="cuda")
            optimizer = torch.optim.AdamW(layer.parameters())
            x, labels = torch.randn(64, 256, device="cuda"), torch.zeros(64, device="cuda")
            total = [0.0, 0.0]

            def step() -> None:
                out = layer(x)
                loss = torch.nn.functional.cross_entropy(out, labels.long())
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(
                    layer.parameters(), 1.0, error_if_nonfinite=False
                )
                optimizer.step()
                optimizer.zero_grad()
                if log:
                    total[0] += loss.item()
                    total[1] += (out.argmax(1) == labels).sum().item() / len(labels)
                    lines.append(f"{loss.item():.4f} {norm:.2f} {total[0] / 3:.3f} {total[1]:.1%}")
                    print(loss, norm, round(total[0], 2), math.exp(total[0]))

            return step

        return make_step

    plain, logging = (estimate(step=make(log), steps=3) for log in (False, True))
    assert logging.peak_allocated_bytes == plain.peak_allocated_bytes
    assert logging.reserved_bytes == plain.reserved_bytes
    assert lines == ["nan nan nan nan%"] * 3
    assert not logging.guesses
    assert not logging.trace.finite


@pytest.mark.parametrize(
    "use",
    [
        lambda x, n: [x, n, 2 * x + n / 3 - n**2, -x % 2, abs(n) // 2, round(x, 2), sum([x, n])],
        lambda x, n: [f"{x:.3f} {x} {n} {n:d} {n:>5} {n!r} {x!s}", "%.2f %s" % (x, n)],  # noqa: UP031
        lambda x, n: [math.exp(x), math.log(n), math.floor(x) + 1, math.sqrt(x), np.sqrt(x)],
        lambda x, n: [copy.deepcopy({"loss": x, "count": n}), [x, n], json.dumps({"loss": x})],
        lambda x, n: [isinstance(x, float), isinstance(n, int), x is None, np.float32(2) * x],
    ],
    ids=["arithmetic", "text", "math", "containers", "types"],
)
def test_what_may_be_done(use: Callable[[Any, Any], Any]) -> None:
    assert read(use).guesses == {}


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda x, _: x < 3, "compares"),
        (lambda x, n: n >= x, "compares"),
        (lambda x, n: max(2 * x / n, 0.0), "compares"),
        (lambda x, _: math.exp(x) == 3, "compares"),
        (lambda _, n: not n, "branches on"),
        (lambda x, _: list(map(int, [x])), "makes an int of"),
        (lambda x, _: list(map(float, [x])), "makes a float of"),
        (lambda x, _: float(x) < 3, "compares"),
        (lambda x, _: range(int(x)), "takes as a size or an index"),
        (lambda x, _: np.mean([x, x]), "makes a float of"),
        (lambda _, n: range(n), "takes as a size or an index"),
        (lambda _, n: [1, 2][n], "takes as a size or an index"),
        (divmod, "takes apart"),
        (lambda x, _: np.ones(3) * x, "gives NumPy"),
    ],
)
def test_what_needs_the_value_is_refused(use: Callable[[Any, Any], Any], what: str) -> None:
    with pytest.raises(UntraceableError, match=rf"{what} a number .*test_readings\.py:\d+\), so"):
        read(use)


def test_a_refusal_that_the_step_drops_counts() -> None:
    def use(x: Any, _: Any) -> None:
        with contextlib.suppress(UntraceableError):
            bool(x)

    with pytest.raises(UntraceableError, match="branches on a number"):
        read(use)


def test_tensors_may_be_scaled_by_what_was_read() -> None:
    shapes: list[Any] = []

    def use(x: Any) -> None:
        number, count = x.sum().item(), (x > 0).sum().item()
        whole = torch.ones(4, dtype=torch.int32, device="cuda")
        results = [x / count, number * x, x.mul(number), torch.div(whole, count), whole * count]
        shapes.extend((tuple(each.shape), each.dtype) for each in results)
        x /= count
        x.add_(count).mul_(number)

    found = traced(use)
    big, small = (64, 64), (4,)
    assert shapes == [(big, torch.float32)] * 3 + [(small, torch.float32), (small, torch.int32)]
    born = [block.size_bytes for block in found.blocks if block.step == 0]
    assert born.count(64 * 64 * 4) == 3  # nothing for what is done in place


@pytest.mark.parametrize(
    "use",
    [
        lambda x: bool(torch.tensor([x.sum().item(), 1.0]).sum() > 0),
        lambda x: bool((torch.ones(3) * x.sum().item()).sum() > 0),
        lambda x: bool(torch.as_tensor([x.sum().item()]).sum() > 0),
        lambda x: bool(torch.tensor((x > 0).sum().item()) > 3),
        lambda x: bool(torch.ones(1) < x.sum().item()),
        lambda x: bool(torch.ones(1).ge(x.sum().item()).any()),
        lambda x: torch.zeros(int(torch.full((), x.sum().item(), dtype=torch.int64))),
        lambda x: x.sum().item().real < 1 or x.sum().item().conjugate() < 1,
        lambda x: torch.zeros((x > 0).sum().item()),
        lambda x: x[: (x > 0).sum().item()],
        lambda x: sum(map(float, x.sum(0))),
        lambda x: next(map(int, (x > 0).sum(0))),
        lambda x: float(x.sum()) > 3 or torch.zeros(int((x > 0).sum())),
    ],
)
def test_no_value_leaks_through_tensors(use: Callable[[Any], Any]) -> None:
    with pytest.raises(UntraceableError, match=r"at .*test_readings\.py:\d+"):
        traced(use)


def test_lists() -> None:
    seen: list[Any] = []
    traced(lambda x: seen.append((x[:2, :3].tolist(), x.sum().tolist(), x[:0].tolist())))
    traced(lambda _: seen.append(torch.arange(3, device="cuda").tolist()))
    (nested, single, empty), known = seen
    assert [len(row) for row in nested] == [3, 3]
    assert all(isinstance(each, float) for row in nested for each in (*row, single))
    assert (empty, known) == ([], [0, 1, 2])
    with pytest.raises(UntraceableError, match="makes a list of 1,048,576 numbers"):
        traced(lambda x: x.expand(256, 64, 64).tolist())


def test_guesses_are_made_where_they_are_allowed() -> None:
    seen: list[Any] = []
    found = traced(lambda x: seen.append((x.sum().item() > 0, f"{x.sum():.1f}")), guess="allow")
    assert seen == [(True, "1.0")]
    assert sum(found.guesses.values()) == 2


@pytest.mark.parametrize(
    "asks",
    [
        lambda x: math.isfinite(x.sum().item()) and not math.isnan(x.sum().item()),
        lambda x: np.isfinite(x.sum().item()) and not np.isnan(x.sum().item()),
        lambda x: torch.isfinite(x).all() and not torch.isinf(x).any(),
        lambda x: torch.isfinite(x.sum()) and not torch.isnan(x).any(),
        lambda x: not (x.sum() != float("inf")).logical_not().item(),
    ],
)
def test_numbers_are_taken_as_finite_and_this_is_reported(asks: Callable[[Any], Any]) -> None:
    answers: list[bool] = []

    def make_step() -> Callable[[], None]:
        x = torch.randn(64, 64, device="cuda")
        return lambda: answers.append(bool(asks(x)))

    found = estimate(step=make_step, steps=1)
    assert answers == [True]
    [(line, count)] = found.trace.finite.items()
    assert "test_readings.py:" in line
    assert count in (1, 2)
    assert "Numbers are taken as finite where" in str(found)
    assert found.as_dict()["finite"] == {line: count}


def test_a_check_that_nobody_asks_about_is_not_reported() -> None:
    assert traced(lambda x: torch.where(torch.isnan(x), 0.0, x)).finite == {}


def test_clipping_that_fails_for_infinite_gradients_works() -> None:
    def use(x: Any) -> None:
        weight = torch.nn.Parameter(x)
        weight.square().sum().backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)

    assert sum(traced(use).finite.values()) == 1


def test_arrays_of_known_values_are_made_and_of_others_refused() -> None:
    seen: list[Any] = []
    traced(lambda _: seen.append(torch.arange(3, device="cuda").cpu().numpy().tolist()))
    assert seen == [[0, 1, 2]]
    text = r"test_readings\.py:\d+ makes a NumPy array .* use x\.item\(\) or float\(x\)"
    with pytest.raises(UntraceableError, match=text):
        traced(lambda x: x.cpu().numpy())
