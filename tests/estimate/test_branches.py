"""Branches of PyTorch's own schedulers and optimizers on values that depend on data."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from helpers.estimated_calls import CALLS
from torch import distributions
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vramkit.errors import UntraceableError
from vramkit.estimate import estimate, find_target
from vramkit.estimate._recorder import Kind, Phase, Trace
from vramkit.estimate._trace import trace

_H100 = find_target("h100")
_NUMEL = 64 * 64 + 64
_FLAT = _NUMEL * 4


def _with_scheduler(
    use: Callable[[ReduceLROnPlateau, Any], None], **options: Any
) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.Linear(64, 64, device="cuda")
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        scheduler = ReduceLROnPlateau(optimizer, patience=0, **options)
        x = torch.randn(8, 64, device="cuda")

        def step() -> None:
            loss = layer(x).square().mean()
            loss.backward()
            optimizer.step()
            use(scheduler, loss)

        return step

    return make_step


def test_a_scheduler_from_outside_is_as_it_was() -> None:
    layer = torch.nn.Linear(64, 64)
    scheduler = ReduceLROnPlateau(torch.optim.SGD(layer.parameters()), patience=0)
    scheduler.step(3.0)
    before = scheduler.state_dict()

    def make_step() -> Callable[[], None]:
        x = torch.randn(8, 64, device="cuda")
        return lambda: scheduler.step(x.sum())

    trace(make_step, target=_H100, steps=2)
    assert scheduler.state_dict() == before
    scheduler.step(2.0)
    assert scheduler.best == 2.0


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "metric",
    [lambda loss: loss, lambda loss: loss.item(), lambda loss: 2 * float(loss)],
    ids=["tensor", "item", "float"],
)
def test_a_metric_that_is_not_known_has_improved(metric: Callable[[Any], Any], mode: str) -> None:
    rates: list[float] = []

    def use(scheduler: ReduceLROnPlateau, loss: Any) -> None:
        scheduler.step(metric(loss))
        rates.append(scheduler.get_last_lr()[0])
        assert f"{scheduler.best:.2f}" == "nan"

    found = estimate(step=_with_scheduler(use, mode=mode))
    plain = estimate(step=_with_scheduler(lambda *_: None))
    assert rates == [0.5] * 3
    assert found.reserved_bytes == plain.reserved_bytes
    [(sentence, count)] = found.trace.assumptions.items()
    assert "ReduceLROnPlateau.step() at " in sentence
    assert "test_branches.py:" in sentence
    assert count == 3
    assert f"Assumed 3 times: {sentence}" in str(found)
    assert found.as_dict()["assumptions"] == {sentence: 3}
    assert found.guesses == {}


def test_a_metric_that_is_known_decides() -> None:
    rates: list[float] = []

    def use(scheduler: ReduceLROnPlateau, _: Any) -> None:
        scheduler.step(3.0)
        scheduler.step(torch.ones(1, device="cuda") * 4)
        rates.append(scheduler.get_last_lr()[0])

    found = trace(_with_scheduler(use), target=_H100, steps=1)
    assert rates == [pytest.approx(0.05)]
    assert found.assumptions == {}


def test_the_best_metric_may_not_be_branched_on() -> None:
    def use(scheduler: ReduceLROnPlateau, loss: Any) -> None:
        scheduler.step(loss)
        if scheduler.best < 1:
            torch.empty(1 << 20, device="cuda")

    with pytest.raises(UntraceableError, match=r"test_branches\.py:\d+ compares a number"):
        trace(_with_scheduler(use), target=_H100, steps=1)


def _fitting(
    counts: list[int], use: Callable[[Any], Any] = lambda loss: loss, **options: Any
) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.Linear(64, 64, device="cuda")
        optimizer = torch.optim.LBFGS(layer.parameters(), **options)
        x = torch.randn(8, 64, device="cuda")

        def closure() -> Any:
            counts.append(len(optimizer.state[layer.weight].get("old_dirs") or ()))
            optimizer.zero_grad()
            loss = layer(x).square().mean()
            loss.backward()
            return use(loss)

        return lambda: optimizer.step(closure)

    return make_step


def _kept(found: Trace) -> int:
    """Vectors of all parameters in the state of the optimizer, at the end."""
    live = found.live_at(len(found.changes) - 1)
    blocks = (found.blocks[number] for number in live)
    return sum(each.kind is Kind.OPTIMIZER_STATE and each.size_bytes == _FLAT for each in blocks)


def test_lbfgs_iterates_as_often_as_it_may() -> None:
    counts: list[int] = []
    found = trace(_fitting(counts, max_iter=7, history_size=50), target=_H100, steps=2)
    assert len(counts) == 2 * 7
    # Two for each direction but the first, the last direction, and the last gradient.
    assert _kept(found) == 2 * 13 + 2
    [(sentence, times)] = found.assumptions.items()
    assert "LBFGS.step() at " in sentence
    assert times == 2
    [(missing, size)] = found.more_bytes.items()
    assert "LBFGS keeps 13 of its 50 directions" in missing
    assert size == 37 * 2 * _FLAT


def test_a_line_search_takes_three_points_and_all_evaluations() -> None:
    counts: list[int] = []
    options = {"line_search_fn": "strong_wolfe", "max_iter": 20, "max_eval": 13}
    found = trace(_fitting(counts, **options), target=_H100, steps=1)
    assert len(counts) == 13
    assert _kept(found) == 2 * 3 + 2


def test_the_history_ends_at_its_size() -> None:
    short = trace(_fitting([], history_size=4), target=_H100, steps=1)
    assert _kept(short) == 2 * 4 + 2
    assert short.more_bytes == {}


def test_what_later_steps_need_widens_the_interval() -> None:
    found, full = (
        estimate(step=_fitting([], max_iter=5, history_size=size), steps=1) for size in (8, 4)
    )
    assert found.device_bytes - full.device_bytes < 1 << 21
    widened = found.device_high_bytes - found.device_bytes
    assert widened - (full.device_high_bytes - full.device_bytes) == 4 * 2 * _FLAT
    assert "LBFGS keeps 4 of its 8 directions after the traced steps" in str(found)


def test_phases_within_the_closure() -> None:
    found = trace(_fitting([], max_iter=2), target=_H100, steps=1)
    of = {each.phase for each in found.blocks if each.step == 0 and each.module}
    assert {Phase.FORWARD, Phase.BACKWARD} <= of
    updates = [each for each in found.blocks if each.operator == "aten::cat"]
    assert {each.phase for each in updates} == {Phase.OPTIMIZER}


@pytest.mark.parametrize(
    ("options", "times"),
    [({}, 21), ({"line_search_fn": "strong_wolfe"}, 26)],
    ids=["plain", "search"],
)
def test_guesses_change_no_rule(options: dict[str, Any], times: int) -> None:
    counts: list[list[int]] = [[], []]
    first, second = (
        trace(_fitting(counts[place], **options), target=_H100, steps=1, guess=guess)
        for place, guess in enumerate(("refuse", "allow"))
    )
    assert len(counts[0]) == len(counts[1]) < times
    assert first.changes == second.changes
    assert second.guesses == {}


def test_branches_of_the_closure_are_the_program_s() -> None:
    def use(loss: Any) -> Any:
        return loss if loss > 1 else 2 * loss

    with pytest.raises(
        UntraceableError, match=r"is_nonzero|_local_scalar_dense at .*test_branches"
    ):
        trace(_fitting([], use), target=_H100, steps=1)


@pytest.mark.parametrize("foreach", [False, True])
def test_adafactor_compares_numbers_that_decide_no_memory(foreach: bool) -> None:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.Linear(64, 96, bias=False, device="cuda")
        optimizer = torch.optim.Adafactor(layer.parameters(), foreach=foreach)
        x = torch.randn(8, 64, device="cuda")

        def step() -> None:
            layer(x).square().mean().backward()
            optimizer.step()
            [state] = optimizer.state.values()
            assert state["row_var"].shape == (96, 1)

        return step

    found = trace(make_step, target=_H100, steps=2)
    assert found.guesses == {}
    assert found.assumptions == {}
    states = [each for each in found.blocks if each.kind is Kind.OPTIMIZER_STATE]
    assert sorted(each.size_bytes for each in states) == [4 * 64, 4 * 96]


def test_transformers_adafactor_scales_by_the_size_of_its_parameters() -> None:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.Linear(64, 96, device="cuda")
        optimizer = transformers.Adafactor(layer.parameters(), relative_step=True, lr=None)
        x = torch.randn(8, 64, device="cuda")

        def step() -> None:
            layer(x).square().mean().backward()
            optimizer.step()

        return step

    assert trace(make_step, target=_H100, steps=2).guesses == {}


def _generating(words: int, **options: Any) -> Trace:
    def make_step() -> Callable[[], None]:
        config = transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=128,
            eos_token_id=2,
        )
        model = transformers.LlamaForCausalLM(config).to("cuda").eval()
        ids = torch.randint(3, 128, (4, 16), device="cuda")

        def step() -> None:
            found = model.generate(ids, max_new_tokens=words, pad_token_id=0, **options)
            assert found.shape == (4, 16 + words)

        return step

    return trace(make_step, target=_H100, steps=1)


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 2}])
def test_generate_goes_on_to_its_longest(options: dict[str, Any]) -> None:
    found = _generating(5, **options)
    assert found.guesses == {}
    assert any(
        each.startswith("generate() finds no end of a sequence") for each in found.assumptions
    )
    assert "generate() finds no padding in its prompts." in found.assumptions
    longer = _generating(9, **options)
    caches = [each for each in longer.blocks if each.kind is Kind.KV_CACHE]
    beams = options.get("num_beams", 1)
    # The last word that is made is not read again.
    assert max(each.size_bytes for each in caches) == 4 * beams * 64 * (16 + 9 - 1) * 4


def test_the_call_that_a_gpu_is_to_record() -> None:
    make_step, steps = CALLS["lbfgs"]
    found = trace(make_step, target=_H100, steps=steps)
    assert found.unknown == ()
    assert list(found.assumptions.values()) == [3]
    assert found.more_bytes == {}


def test_arguments_of_distributions_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    # Dynamo turns the checks off for the whole process when something is compiled.
    monkeypatch.setattr(distributions.Distribution, "_validate_args", True)

    def make_step() -> Callable[[], object]:
        layer = torch.nn.Linear(8, 8, device="cuda")

        def step() -> None:
            mean = layer(torch.ones(4, 8, device="cuda"))
            normal = distributions.Normal(mean, torch.ones_like(mean))
            distributions.kl_divergence(normal, distributions.Normal(0.0, 1.0)).sum().backward()
            distributions.Bernoulli(logits=mean).log_prob((mean > 0).float())
            distributions.MultivariateNormal(mean[0], torch.eye(8, device="cuda") * mean[0].exp())

        return step

    found = estimate(step=make_step, steps=1)
    first = next(iter(found.trace.assumptions))
    assert re.fullmatch(
        r"The arguments of torch.distributions at .*test_branches.py:\d+ are valid\.", first
    )
    assert found.peak.by_kind["parameters"] == 4 * (8 * 8 + 8)


def test_other_questions_of_the_program_are_refused_as_before() -> None:
    def step() -> None:
        if torch.ones(4, device="cuda").cumsum(0).mul(torch.rand(4, device="cuda")).all():
            raise AssertionError

    with pytest.raises(UntraceableError, match="reads a value that depends on the data"):
        estimate(step=lambda: step)
