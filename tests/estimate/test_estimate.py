"""The public entrance and its result."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import vramkit
from vramkit.errors import ArgumentTypeError, EmptyStepError, InvalidArgumentError
from vramkit.estimate import Estimate, find_target
from vramkit.simulate import load_trace, replay

_MIB = 1 << 20
_OUTSIDE = find_target("h100").outside_bytes


def _layers(width: int = 1024) -> torch.nn.Module:
    blocks = (torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU()) for _ in range(4))
    return torch.nn.Sequential(*blocks)


@pytest.fixture(scope="module")
def trained() -> Estimate:
    return vramkit.estimate(_layers(), torch.empty(8192, 1024), optimizer="adamw", steps=2)


def test_the_module_is_the_function(trained: Estimate) -> None:
    assert isinstance(trained, Estimate)
    assert callable(vramkit.estimate)
    assert set(vramkit.estimate.__all__) <= set(dir(vramkit.estimate))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = vramkit.estimate.nothing


def test_the_figures_agree_with_each_other(trained: Estimate) -> None:
    assert trained.peak_requested_bytes == sum(trained.peak.by_kind.values())
    assert trained.peak_requested_bytes == trained.events.peak_live_bytes
    assert trained.peak_requested_bytes <= trained.peak_allocated_bytes
    for reserved in trained.reserved_bytes.values():
        assert reserved >= trained.peak_requested_bytes
    assert trained.device_bytes == trained.reserved_bytes["native"] + _OUTSIDE
    assert trained.device_low_bytes <= trained.device_bytes <= trained.device_high_bytes
    modules = sum(share.size_bytes for share in trained.peak.by_module)
    operators = sum(share.size_bytes for share in trained.peak.by_operator)
    assert modules == operators == trained.peak_requested_bytes


def test_optimizer_state_is_twice_the_parameters(trained: Estimate) -> None:
    parameter_bytes = 4 * trained.parameters
    assert trained.peak.by_kind["optimizer state"] == pytest.approx(2 * parameter_bytes, rel=1e-4)


def test_the_pool_completes_with_what_was_found_and_not_with_a_page_less(trained: Estimate) -> None:
    found = trained.reserved_bytes["pool"]
    assert replay(trained.events, capacity_bytes=found).failure is None
    assert replay(trained.events, capacity_bytes=found - 2 * _MIB).failure is not None


def test_budgets(trained: Estimate) -> None:
    assert trained.fits("80GiB")
    assert trained.fits(trained.device_bytes)
    assert trained.fits("t4")
    assert not trained.fits("1GiB")
    assert not trained.fits(trained.peak_requested_bytes + _OUTSIDE - _MIB)
    with pytest.raises(InvalidArgumentError, match=r"budget '80' .*|budget '80G'"):
        trained.fits("80G")


def test_cached_segments_are_given_back_before_a_step_fails() -> None:
    def make_step() -> Callable[[], None]:
        def step() -> None:
            for size in (100, 130, 170):
                torch.empty(size * _MIB, dtype=torch.uint8, device="cuda")

        return step

    found = vramkit.estimate(step=make_step)
    assert found.reserved_bytes["native"] == 400 * _MIB
    assert found.fits(_OUTSIDE + 170 * _MIB)
    assert not found.fits(_OUTSIDE + 169 * _MIB)


def test_the_table_and_its_html(trained: Estimate) -> None:
    text, page = str(trained), trained._repr_html_()
    assert text.startswith("2 steps on NVIDIA H100 80GB HBM3, 4.2 M parameters")
    for name in ("smallest vramkit.MemoryPool", "optimizer state", "By module", "aten::"):
        assert name in text
        assert name in page
    assert page.count("<table>") == 4


def test_few_parameters_are_counted_exactly() -> None:
    found = vramkit.estimate(_layers(16), torch.empty(8, 16), steps=1)
    assert str(found).startswith("1 step on NVIDIA H100 80GB HBM3, 1,088 parameters\n")


def test_json_holds_the_figures(trained: Estimate) -> None:
    report = json.loads(trained.json())
    assert report["device_bytes"] == trained.device_bytes
    assert report["peak"]["by_kind"] == trained.peak.by_kind


def test_saved_events_replay(trained: Estimate, tmp_path: Path) -> None:
    events = load_trace(trained.save_events(tmp_path / "step.npz"))
    assert events.peak_live_bytes == trained.peak_requested_bytes


def test_timelines(trained: Estimate, tmp_path: Path) -> None:
    page = trained.timeline(tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<polygon") == page.count("<span") >= 5
    assert trained.timeline(tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InvalidArgumentError, match=r"an \.html or \.png file, not 'a\.txt'"):
        trained.timeline(tmp_path / "a.txt")


def test_the_allocator_s_settings_count() -> None:
    plain = vramkit.estimate(_layers(), torch.empty(64, 1024), steps=1)
    grown = vramkit.estimate(
        _layers(), torch.empty(64, 1024), steps=1, alloc_conf="expandable_segments:True"
    )
    assert grown.device_bytes == plain.reserved_bytes["expandable"] + _OUTSIDE


def test_inference_keeps_no_activations() -> None:
    sample = torch.empty(8192, 1024)
    inference = vramkit.estimate(_layers(), sample, steps=1)
    training = vramkit.estimate(_layers(), sample, train=True, steps=1)
    assert inference.peak_requested_bytes < training.peak_requested_bytes - 100 * _MIB


def test_a_model_without_data_and_one_that_a_function_makes() -> None:
    with torch.device("meta"):
        empty = _layers()
    sample = torch.empty(64, 1024)
    found = [vramkit.estimate(model, sample, steps=1) for model in (empty, _layers(), _layers)]
    peaks = {each.peak_requested_bytes for each in found}
    assert len(peaks) == 1


def test_losses_and_inputs() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 4)

        def forward(self, x: Any, labels: Any = None) -> Any:
            out = self.layer(x)
            if labels is None:
                return out
            return {"loss": torch.nn.functional.cross_entropy(out, labels), "logits": out}

    labels = torch.zeros(8, dtype=torch.long)
    for sample in (torch.empty(8, 16), (torch.empty(8, 16),), {"x": torch.empty(8, 16)}):
        assert vramkit.estimate(Model(), sample, optimizer="sgd", steps=1).parameters == 68
    own = vramkit.estimate(Model(), {"x": torch.empty(8, 16), "labels": labels}, train=True)
    assert any("nll_loss" in block.operator for block in own.trace.blocks)
    given = vramkit.estimate(Model(), torch.empty(8, 16), loss=lambda out: out.square().mean())
    assert given.peak.by_kind["gradients"] == 68 * 4
    with pytest.raises(InvalidArgumentError, match=r"without a loss .* pass loss="):
        vramkit.estimate(torch.nn.ReLU(), torch.empty(8), train=True)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_model_is_trained_also_where_gradients_are_off(off: Callable[[], Any]) -> None:
    model, sample = torch.nn.Linear(8, 8), torch.empty(2, 8)
    expected = vramkit.estimate(model, sample, optimizer="adamw", steps=2)
    with off():
        found = vramkit.estimate(model, sample, optimizer="adamw", steps=2)
        assert torch.is_inference_mode_enabled() == (off is torch.inference_mode)
    assert found.trace.changes == expected.trace.changes
    assert found.peak.by_kind == expected.peak.by_kind


def test_the_model_is_untouched() -> None:
    model = _layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vramkit.estimate(model, torch.empty(8, 1024), optimizer=torch.optim.SGD(model.parameters(), 1))
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_unmeasured_target_has_an_interval_with_its_reason() -> None:
    found = vramkit.estimate(_layers(), torch.empty(8, 1024), target="a100-80gb", steps=1)
    assert found.device_high_bytes - found.device_low_bytes > 1000 * _MIB
    assert "assumed" in " ".join(found.uncertain)
    assert found.peak.by_kind["workspaces"] < 12 * _MIB  # cuBLAS takes less before Hopper


def test_an_unmeasured_convolution_widens_the_interval() -> None:
    model = torch.nn.Conv2d(32, 64, 3, padding=1)
    found = vramkit.estimate(model, torch.empty(2, 32, 17, 19), train=True, steps=1)
    assert any("aten::convolution" in reason for reason in found.uncertain)
    plain = found.device_bytes - found.target.outside_bytes + found.target.outside_low_bytes
    assert found.device_low_bytes < plain


def test_another_target_of_one_s_own() -> None:
    own = dataclasses.replace(find_target("h100"), name="own", outside_bytes=0)
    found = vramkit.estimate(_layers(), torch.empty(8, 1024), target=own, steps=1)
    assert found.device_bytes == found.reserved_bytes["native"]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"needs a model .* or step=, got NoneType"):
        vramkit.estimate()
    with pytest.raises(ArgumentTypeError, match="either step= or a model"):
        vramkit.estimate(_layers(), step=lambda: lambda: None)
    with pytest.raises(InvalidArgumentError, match="optimizer 'lion' is unknown; known are adam"):
        vramkit.estimate(_layers(), torch.empty(1), optimizer="lion")
    with pytest.raises(ArgumentTypeError, match=r"a function that returns int; .* as step="):
        vramkit.estimate(lambda: 3, torch.empty(1))


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (lambda _: None, "NoneType"),
        (lambda output: output.sum().item(), "a number"),
        (lambda output: int(output.sum()), "a number"),
        (lambda _: 1.0, "a number"),
        (lambda output: (output.sum(), output), "tuple"),
    ],
)
def test_a_loss_that_is_no_tensor_is_refused(loss: Callable[[Any], Any], kind: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"loss must return a tensor, .* got {kind}; "):
        vramkit.estimate(_layers(16), torch.empty(8, 16), loss=loss)


def test_labels_on_the_cpu_are_refused_with_what_to_do() -> None:
    labels, model, sample = torch.zeros(8, dtype=torch.long), _layers(16), torch.empty(8, 16)
    text = r"test_estimate\.py:\d+ mixes tensors on the CPU .* y\.to\(o\.device\)"
    with pytest.raises(InvalidArgumentError, match=text) as caught:
        vramkit.estimate(model, sample, loss=lambda o: functional.cross_entropy(o, labels))
    assert "cuda:0 and cpu" in str(caught.value.__cause__)
    moved = vramkit.estimate(
        model,
        sample,
        loss=lambda o: functional.cross_entropy(o, labels.to(o.device)),
        optimizer="adam",
    )
    assert moved.peak_requested_bytes > 0


def test_other_errors_of_a_loss_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="broadcast"):
        vramkit.estimate(_layers(16), torch.empty(8, 16), loss=lambda o: (o + o[:, :3]).sum())


def test_an_optimizer_updates_the_parameters_that_it_has() -> None:
    model, sample = _layers(), torch.empty(8, 1024)
    first = torch.optim.Adam(model[0].parameters())
    found = vramkit.estimate(model, sample, optimizer=first)
    all_of_them = vramkit.estimate(model, sample, optimizer=torch.optim.Adam(model.parameters()))
    state = (found.peak.by_kind["optimizer state"], all_of_them.peak.by_kind["optimizer state"])
    assert state == (2 * 4 * (1024 + 1) * 1024, 4 * 2 * 4 * (1024 + 1) * 1024)


@pytest.mark.parametrize(
    "kind",
    [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adafactor],
)
def test_an_optimizer_counts_as_its_class_does(kind: type[torch.optim.Optimizer]) -> None:
    model, sample = _layers(16), torch.empty(8, 16)
    own, by_class = (
        vramkit.estimate(model, sample, optimizer=each)
        for each in (kind(model.parameters()), kind)  # type: ignore[call-arg]
    )
    assert own.peak_requested_bytes == by_class.peak_requested_bytes


def test_an_optimizer_with_any_options_keeps_its_defaults() -> None:
    class Own(torch.optim.SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)

    model, sample = _layers(), torch.empty(8, 1024)
    found = vramkit.estimate(model, sample, optimizer=Own(model.parameters(), lr=0.1, momentum=0.9))
    assert found.peak.by_kind["optimizer state"] == 4 * 4 * (1024 + 1) * 1024


def test_the_groups_of_an_optimizer_keep_their_options() -> None:
    model, sample = _layers(), torch.empty(8, 1024)
    groups = [
        {"params": list(model[0].named_parameters()), "momentum": 0.9},
        {"params": list(model[1].named_parameters())},
    ]
    found = vramkit.estimate(model, sample, optimizer=torch.optim.SGD(groups, lr=0.1))
    assert found.peak.by_kind["optimizer state"] == 4 * (1024 + 1) * 1024


def test_an_optimizer_of_another_model_is_refused() -> None:
    other = torch.optim.Adam(_layers().parameters())
    for model in (_layers(), _layers):
        with pytest.raises(InvalidArgumentError, match="parameters that the model does not have"):
            vramkit.estimate(model, torch.empty(8, 1024), optimizer=other)


def test_a_step_that_puts_nothing_on_the_gpu_is_refused() -> None:
    text = "the step allocates nothing on 'cuda', so there is nothing .* the device 'cuda' itself"
    with pytest.raises(EmptyStepError, match=text):
        vramkit.estimate(step=lambda: lambda: torch.ones(8))


def test_a_step_that_was_called_already_is_told() -> None:
    text = "got NoneType; .* pass make_step itself, without calling it"
    with pytest.raises(ArgumentTypeError, match=text):
        vramkit.estimate(step=lambda: None)
    with pytest.raises(ArgumentTypeError, match=r"got int$"):
        vramkit.estimate(step=lambda: 3)


def test_a_step_that_returns_a_step_has_not_run() -> None:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.Linear(8, 8, device="cuda")
        return lambda: layer(torch.ones(8, device="cuda")).sum().backward()

    text = "the step returned a function, so that none of it has run; make_step must return"
    with pytest.raises(ArgumentTypeError, match=text):
        vramkit.estimate(step=lambda: make_step)


@pytest.mark.filterwarnings("error:coroutine:RuntimeWarning")
def test_a_coroutine_that_makes_a_step() -> None:
    async def make_step() -> Callable[[], None]:
        return lambda: None

    with pytest.raises(ArgumentTypeError, match=r"runs one step, got coroutine$"):
        vramkit.estimate(step=make_step)
    gc.collect()


def test_progress_is_a_function() -> None:
    with pytest.raises(ArgumentTypeError, match=r"progress must be a function of .*, got 3 of int"):
        vramkit.estimate(step=lambda: None, progress=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"loss": "mse"}, "loss must be a function of the output, got 'mse' of str"),
        ({"train": 1}, "train must be True, False or None, got 1 of int"),
        ({"autocast": "bf16"}, "autocast must be a dtype such as torch.bfloat16, got 'bf16'"),
        ({"steps": 1.5}, "steps must be an integer, got 1.5 of float"),
        ({"alloc_conf": 3}, "alloc_conf must be a text such as 'expandable_segments:True'"),
    ],
)
def test_options_of_a_wrong_type_are_refused_by_name(option: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=text):
        vramkit.estimate(_layers(8), torch.empty(1, 8), **option)


@pytest.mark.parametrize("budget", [None, 1.5, float("nan")])
def test_a_budget_of_a_wrong_type_is_refused(trained: Estimate, budget: Any) -> None:
    for ask in (trained.fits, trained.advice):
        with pytest.raises(ArgumentTypeError, match="budget must be a number of bytes"):
            ask(budget)


def test_a_sample_that_needs_a_gradient_gets_one() -> None:
    layer = torch.nn.Linear(8, 8).requires_grad_(False)
    sample = torch.empty(1 << 20, 8)
    with_gradient = vramkit.estimate(layer, sample.clone().requires_grad_(), train=True, steps=1)
    assert with_gradient.peak.by_kind["data"] == 32 * _MIB
    assert with_gradient.peak_requested_bytes >= 64 * _MIB
    with pytest.raises(InvalidArgumentError, match="without a tensor that needs a gradient"):
        vramkit.estimate(layer, sample, train=True)


def test_a_sample_that_is_channels_last_stays_so() -> None:
    asked: list[bool] = []

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(x.is_contiguous(memory_format=torch.channels_last))
            return x * 2

    images = torch.empty(2, 8, 4, 4)
    vramkit.estimate(Layer(), images, steps=1)
    vramkit.estimate(Layer(), images.to(memory_format=torch.channels_last), steps=1)
    assert asked == [False, True]


def test_parameters_and_buffers_with_gaps_or_overlap_become_dense() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gaps = torch.nn.Parameter(torch.ones(1024, 2048)[:, ::2])
            self.register_buffer("overlap", torch.ones(1, 1024).expand(1024, 1024))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    found = vramkit.estimate(Layer(), torch.empty(0), steps=1)
    assert found.peak_requested_bytes == 8 * _MIB


def test_a_peak_that_no_machine_has_is_estimated_without_a_pool() -> None:
    tebibyte = 1 << 40

    def make_step() -> Callable[[], object]:
        return lambda: torch.empty(32 * tebibyte, dtype=torch.uint8, device="cuda")

    found = vramkit.estimate(step=make_step, steps=1)
    assert found.peak_allocated_bytes == 32 * tebibyte
    assert set(found.reserved_bytes) == {"native", "expandable"}
    assert any("MemoryPool is not searched for" in reason for reason in found.uncertain)
    assert not found.fits("b200")
    assert "MemoryPool" not in " ".join(each.change for each in found.advice("b200").proposals)
