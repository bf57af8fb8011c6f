"""``float()`` and ``int()`` of tensors are readings in the program's own files."""

from __future__ import annotations

import builtins
import functools
import gc
import importlib
import math
import statistics
import threading
from collections.abc import Callable
from math import copysign, exp, isclose, isnan
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pytest
import torch

from vramkit.errors import UntraceableError
from vramkit.estimate import estimate, find_target
from vramkit.estimate._conversions import is_own
from vramkit.estimate._readings import ReadFloat, ReadInteger
from vramkit.estimate._trace import trace

_H100 = find_target("h100")


class _Meter:
    """A running average, as training scripts have it."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, loss: Any, hits: Any) -> None:
        self.total += float(loss)
        self.count += int(hits)

    @staticmethod
    def of(number: Any) -> Any:
        return float(number)

    @property
    def mean(self) -> float:
        return self.total / max(int(self.total == self.total), 1)


def _loss_of(x: Any) -> float:
    return float(x.square().mean())


def _step(use: Callable[[Any], Any]) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        x = torch.randn(64, 64, device="cuda")
        return lambda: use(x)

    return make_step


def _traced(use: Callable[[Any], Any], **options: Any) -> Any:
    return trace(_step(use), target=_H100, steps=1, **options)


def test_a_loop_that_averages_needs_what_one_without_needs() -> None:
    texts: list[str] = []

    def make(log: bool) -> Callable[[], Callable[[], None]]:
        def make_step() -> Callable[[], None]:
            layer, meter = torch.nn.Linear(256, 256, device="cuda"), _Meter()
            x, total = torch.randn(64, 256, device="cuda"), 0.0

            def step() -> None:
                nonlocal total
                loss = layer(x).square().mean()
                loss.backward()
                if log:
                    total += float(loss) / 3
                    meter.update(loss, (x > 0).sum())
                    texts.append(f"{total:.3f} {meter.total:.1f} {meter.count / 64:.1%}")

            return step

        return make_step

    plain, logging = (estimate(step=make(log), steps=3) for log in (False, True))
    assert texts == ["nan nan nan%"] * 3
    assert logging.peak_allocated_bytes == plain.peak_allocated_bytes
    assert logging.reserved_bytes == plain.reserved_bytes
    assert not logging.guesses


@pytest.mark.parametrize(
    "use",
    [
        lambda x: [float(x.sum()), float((x > 0).sum()), float(x.sum().item())],
        lambda x: [_Meter.of(x.sum()), _loss_of(x), functools.partial(_Meter.of, x.sum())()],
        lambda x: [float(row.sum()) for row in x[:2]],
    ],
    ids=["calls", "functions", "loops"],
)
def test_floats_are_read(use: Callable[[Any], Any]) -> None:
    seen: list[Any] = []
    _traced(lambda x: seen.extend(use(x)))
    assert all(type(each) is ReadFloat for each in seen)


def test_integers_are_read() -> None:
    seen: list[Any] = []
    _traced(lambda x: seen.extend([int(x.sum()), int((x > 0).sum()), int(x.sum().item())]))
    assert all(type(each) is ReadInteger for each in seen)


def test_other_uses_of_the_names_stay() -> None:
    seen: list[Any] = []

    def use(x: Any) -> None:
        number: float = x.sum().item()
        ones = torch.ones(2, dtype=float, device="cuda"), np.ones(2, float)
        seen.extend([isinstance(number, float), type(2 * 0.5) is float, float is builtins.float])
        seen.extend([ones[0].dtype == torch.float64, ones[1].dtype == np.float64])
        seen.extend([float("2.5") == 2.5, float(7) == 7, int("11", base=2) == 3, int(True) == 1])
        seen.extend([float(torch.ones(1, device="cuda")) == 1, int(torch.tensor(7)) == 7])

    _traced(use)
    assert seen == [True] * 11


@pytest.mark.parametrize(
    "use",
    [
        lambda x: float(x.sum()) < 3,
        lambda x: x[: int((x > 0).sum())],
        lambda x: [0.0] * int((x > 0).sum()),
        lambda x: float(x.sum()) and 1,
        lambda x: list(map(float, x[0])),
        lambda x: math.fsum([float(x.sum())]) > 1,
        lambda x: math.fsum(float(row.sum()) for row in x) > 1,
        lambda x: statistics.fmean([float(x.sum())] * 2) > 1,
        lambda x: math.isclose(float(x.sum()), 1.0),
        lambda x: isclose(float(x.sum()), 1.0),
        lambda x: float(f"{x.sum().item():.3f}") < 3,
        lambda x: float(str(float(x.sum()))) < 3,
        lambda x: int((x > 0).sum()) in {1: 2},
        lambda x: {1.0: 2}.get(float(x.sum())),
        lambda x: _cached(int((x > 0).sum())),
        lambda x: range(1 << int((x > 0).sum()) & 3),
        lambda x: x.split(int((x > 0).sum())),
    ],
)
def test_what_needs_the_value_is_refused(use: Callable[[Any], Any]) -> None:
    with pytest.raises(UntraceableError, match=r"at .*test_conversions\.py:\d+"):
        _traced(use)


def test_a_tensor_of_many_elements_is_an_error_as_ever() -> None:
    with pytest.raises(ValueError, match="only one element tensors can be converted"):
        _traced(_Meter.of)


def test_guesses_are_counted_where_they_are_allowed() -> None:
    seen: list[Any] = []
    found = _traced(lambda x: seen.append(float(x.sum()) + int((x > 0).sum())), guess="allow")
    assert seen == [2.0]
    assert sum(found.guesses.values()) == 2
    assert all("test_conversions.py:" in each for each in found.guesses)


def test_modules_that_are_imported_while_the_step_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metrics_of_mine.py"
    file.write_text("def number(x):\n    return float(x)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[Any] = []

    def make_step() -> Callable[[], None]:
        module = importlib.import_module("metrics_of_mine")
        x = torch.randn(4, device="cuda")
        return lambda: seen.append(module.number(x.sum()))

    trace(make_step, target=_H100, steps=1)
    assert type(seen[0]) is ReadFloat
    assert importlib.import_module("metrics_of_mine").number("1") == 1


def test_all_functions_get_their_code_back() -> None:
    made: list[FunctionType] = []

    def make_step() -> Callable[[], None]:
        x = torch.randn(4, device="cuda")

        def step() -> None:
            float(x.sum())

        made.append(step)
        return step

    functions = [_loss_of, _Meter.update, _Meter.of, make_step]
    before = [each.__code__ for each in functions]
    inside: list[CodeType] = []
    trace(lambda: inside.append(_loss_of.__code__) or make_step(), target=_H100, steps=1)
    assert inside[0] is not before[0]
    assert [each.__code__ for each in functions] == before
    assert all(each.__code__ is code for each, code in zip(functions, before, strict=True))
    assert made[0].__code__ in make_step.__code__.co_consts


@pytest.mark.parametrize("many", [1, 130, 300])
def test_functions_with_many_names_and_constants(many: int) -> None:
    names = "\n".join(
        f"    if x is None: return name_{number}, {number}.5" for number in range(many)
    )
    source = (
        f"def use(x):\n{names}\n    return [float(each) for each in x], float(x[0]), int(x[1])\n"
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, "/elsewhere/mine.py", "exec"), namespace)
    code = namespace["use"].__code__
    seen: list[Any] = []
    _traced(lambda x: seen.extend(namespace["use"](x.sum(0)[:2])))
    assert [type(each) for each in (*seen[0], *seen[1:])] == [ReadFloat] * 3 + [ReadInteger]
    assert namespace["use"].__code__ is code
    assert namespace["use"]("23") == ([2.0, 3.0], 2.0, 3)


class _Hiding:
    """Functions that no name leads to at once."""

    kept: Any

    @property
    def value(self) -> Any:
        return self.kept

    @value.setter
    def value(self, x: Any) -> None:
        self.kept = float(x.sum())

    @functools.cached_property
    def once(self) -> float:
        return float(self.kept)

    @functools.singledispatchmethod
    def by_type(self, x: Any) -> float:
        return float(x.sum())


@torch.no_grad()
def _without_gradients(x: Any) -> float:
    return float(x.sum())


@functools.lru_cache
def _cached(x: Any) -> float:
    return float(x.sum())


@torch.compile(backend="eager")
def _compiled(x: Any) -> float:
    return float(x.sum())


def _of_default(x: Any, *, use: Any = lambda x: float(x.sum())) -> Any:
    return use(x)


_TABLE = {"sum": [lambda x: float(x.sum())]}


def _hiding(x: Any) -> list[Any]:
    hiding = _Hiding()
    hiding.value = x
    found = [hiding.value, hiding.by_type(x)]
    hiding.kept = x.sum()
    return [*found, hiding.once]


@pytest.mark.parametrize(
    "use",
    [
        _hiding,
        lambda x: [_without_gradients(x), _cached(x), _compiled(x)],
        lambda x: [_of_default(x), _TABLE["sum"][0](x)],
    ],
    ids=["descriptors", "decorators", "values"],
)
def test_functions_are_found_wherever_they_are_kept(use: Callable[[Any], Any]) -> None:
    seen: list[Any] = []
    _traced(lambda x: seen.extend(use(x)))
    assert all(type(each) is ReadFloat for each in seen)


class _Proxy:
    """Fails where it is asked for anything, as proxies do outside of their context."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __len__(self) -> int:
        raise RuntimeError


_PROXIES = [_Proxy(), type("_Lazy", (_Proxy, dict), {})()]


def test_no_code_of_objects_runs_where_functions_are_looked_for() -> None:
    assert type(_PROXIES[1]).__module__ == __name__
    assert _traced(_loss_of).guesses == {}


def test_functions_of_math_that_were_imported_by_name() -> None:
    seen: list[Any] = []
    _traced(lambda x: seen.extend([exp(float(x.sum())), copysign(1.0, float(x.sum()))]))
    assert all(type(each) is ReadFloat for each in seen)
    found = _traced(lambda x: seen.append(isnan(float(x.sum()))))
    assert seen[-1] is False
    assert sum(found.finite.values()) == 1
    assert [exp, copysign, isnan] == [math.exp, math.copysign, math.isnan]
    assert isnan(math.nan)


def test_code_that_goes_on_after_the_trace() -> None:
    numbers = (float("1.5") for _ in range(2))
    made: list[Any] = []
    go, waiting = threading.Event(), threading.Event()

    def later() -> None:
        waiting.set()
        go.wait(60)
        made.append(float("2.5"))

    def make_step() -> Callable[[], None]:
        thread = threading.Thread(target=later)
        thread.start()
        made.append(thread)
        waiting.wait(60)
        made.append(float("3.5") for _ in range(2))
        next(made[1])
        return lambda: next(numbers)

    trace(make_step, target=_H100, steps=1)
    go.set()
    made[0].join()
    assert [next(numbers), next(made[1]), made[2]] == [1.5, 3.5, 2.5]


def test_functions_that_the_garbage_collector_no_longer_sees_get_their_code_back() -> None:
    code = _loss_of.__code__

    def use(x: Any) -> None:
        gc.freeze()
        _loss_of(x)

    try:
        _traced(use)
    finally:
        gc.unfreeze()
    assert _loss_of.__code__ is code


def test_whose_files_are_changed() -> None:
    assert is_own(__file__)
    for foreign in (torch.nn.Module.forward, functools.wraps, importlib.import_module, estimate):
        code = getattr(foreign, "__code__", None) or foreign.__call__.__code__
        assert not is_own(code.co_filename)
    assert not is_own("<frozen importlib._bootstrap>")


def test_models_and_losses_of_functions_read_their_numbers() -> None:
    seen: list[float] = []

    class Logging(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(float(x.sum()))
            return x * 2

    def loss(output: torch.Tensor) -> torch.Tensor:
        found = output.mean()
        seen.append(float(found))
        return found

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Logging())
    found = estimate(model, torch.empty(2, 8), loss=loss, steps=1)
    assert len(seen) == 2
    assert all(map(isnan, seen))
    assert found.guesses == {}
