"""Recurrent layers of cuDNN, held against calls that were recorded on an H200."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.phases import changes_in, one_a_step

from vramkit.errors import UntraceableError
from vramkit.estimate import find_target
from vramkit.estimate._recorder import Trace
from vramkit.estimate._trace import trace

_H200 = find_target("h200")
_CASES = json.loads((Path(__file__).parent / "recurrent-h200.json").read_text(encoding="utf-8"))
_BUILD, _FORWARD, _BACKWARD = 1, 2, 4


def _name(case: dict[str, Any]) -> str:
    parts = ("layer", "steps", "hidden", "layers", "dtype", "packed", "autocast", "fixed_input")
    given = [str(case[part]) for part in parts if part in case]
    return "-".join([*given, *(f"{name}={value}" for name, value in case["options"].items())])


def _phases(case: dict[str, Any]) -> Callable[[], Callable[[], None]]:
    """Input, layer, forward pass, gradient and backward pass, each as a step of its own."""
    dtype = getattr(torch, case["dtype"])

    def make_step() -> Callable[[], None]:
        made: dict[str, Any] = {}

        def data() -> None:
            shape = [case["steps"], case["batch"], case["inputs"]]
            if case["options"].get("batch_first"):
                shape[:2] = shape[1], shape[0]
            made["x"] = torch.randn(shape, device="cuda", dtype=dtype)
            made["x"].requires_grad_(not case.get("fixed_input"))
            if case.get("packed"):
                lengths = torch.tensor(
                    [max(1, case["steps"] - 2 * number) for number in range(case["batch"])]
                )
                made["x"] = torch.nn.utils.rnn.pack_padded_sequence(made["x"], lengths)

        def build() -> None:
            layer = getattr(torch.nn, case["layer"])
            sizes = (case["inputs"], case["hidden"], case["layers"])
            made["layer"] = layer(*sizes, device="cuda", dtype=dtype, **case["options"])

        def forward() -> None:
            autocast = case.get("autocast")
            to = getattr(torch, autocast) if autocast else torch.float16
            with torch.autocast("cuda", to, enabled=autocast is not None):
                made["out"] = made["layer"](made["x"])

        def gradient() -> None:
            out = made["out"][0]
            made["result"] = out.data if case.get("packed") else out
            made["gradient"] = torch.ones_like(made["result"])

        def backward() -> None:
            made["result"].backward(made["gradient"])

        return one_a_step(data, build, forward, gradient, backward)

    return make_step


@pytest.mark.filterwarnings("ignore:RNN module weights are not part")
@pytest.mark.parametrize("case", _CASES, ids=_name)
def test_recorded_calls(case: dict[str, Any]) -> None:
    found = trace(_phases(case), target=_H200, steps=5)
    for step, phase in ((_BUILD, "build"), (_FORWARD, "forward"), (_BACKWARD, "backward")):
        expected, changes = case[phase], changes_in(found, step)
        if case.get("autocast") and step == _BACKWARD:
            # The copy of the weights is dropped at the end of the pass, not within it.
            expected, changes = ([c for c in each if c > 0] for each in (expected, changes))
        assert len(changes) == len(expected), phase
        for change, wanted in zip(changes, expected, strict=True):
            # Workspaces follow a formula.
            assert change == pytest.approx(wanted, rel=0.09 if abs(wanted) > 8 << 20 else 1e-9)


def _training(layer: torch.nn.Module, x: torch.Tensor, **options: Any) -> Trace:
    def make_step() -> Callable[[], None]:
        made, data = layer.to("cuda"), torch.empty_like(x, device="cuda")
        return lambda: made(data, **options)[0].sum().backward()

    return trace(make_step, target=_H200, steps=2)


def _sizes(found: Trace, operator: str) -> list[int]:
    return [block.size_bytes for block in found.blocks if block.operator == operator]


def test_dropout_keeps_its_random_states_and_a_mask() -> None:
    plain, dropping = (
        _training(torch.nn.LSTM(64, 256, 2, dropout=p), torch.empty(32, 8, 64)) for p in (0.0, 0.5)
    )
    assert _sizes(dropping, "cuDNN dropout") == [6_488_064]
    assert _sizes(plain, "cuDNN dropout") == []
    taken = [sum(_sizes(found, "aten::_cudnn_rnn")) for found in (plain, dropping)]
    assert taken[1] - taken[0] == 2 * 32 * 8 * 256 // 8


def test_weights_apart_are_copied_at_every_call() -> None:
    def make_step() -> Callable[[], None]:
        # PyTorch does not put weights of bfloat16 together.
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
        layer, x = torch.nn.GRU(64, 64, **options), torch.randn(8, 4, 64, **options)
        return lambda: layer(x)[0].sum().backward()

    with pytest.warns(UserWarning, match="not part of single contiguous chunk of memory"):
        found = trace(make_step, target=_H200, steps=2)
    buffer = (2 * 192 * 64 + 2 * 192) * 2
    assert _sizes(found, "aten::_cudnn_rnn").count(buffer) == 2


def test_layers_of_a_given_model_are_put_together() -> None:
    from vramkit import estimate

    layer = torch.nn.Sequential(torch.nn.LSTM(64, 64))
    loss = lambda out: out[0].sum()  # noqa: E731
    found = estimate(layer, torch.empty(8, 4, 64), optimizer="sgd", loss=loss, target=_H200)
    assert found.trace.unknown == ()
    assert found.parameters == 4 * 64 * (64 + 64) + 8 * 64
    assert (4 * 64 * 128 + 8 * 64) * 4 not in _sizes(found.trace, "aten::_cudnn_rnn")


def test_states_may_be_given_and_learn() -> None:
    states = tuple(torch.zeros(2, 4, 32, device="meta", requires_grad=True) for _ in range(2))

    def make_step() -> Callable[[], None]:
        hx, cx = (torch.empty_like(each, device="cuda", requires_grad=True) for each in states)
        layer = torch.nn.LSTM(16, 32, bidirectional=True, device="cuda")
        x = torch.randn(8, 4, 16, device="cuda")

        def step() -> None:
            out, (hy, cy) = layer(x, (hx, cx))
            (out.sum() + hy.sum() + cy.sum()).backward()
            learned = (hx, cx, layer.weight_hh_l0_reverse)
            assert all(each.grad is not None for each in learned)

        return step

    trace(make_step, target=_H200, steps=2)


def test_evaluation_keeps_nothing() -> None:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.GRU(64, 256, device="cuda").eval()
        x = torch.randn(64, 8, 64, device="cuda")

        def step() -> None:
            with torch.inference_mode():
                layer(x)

        return step

    found = trace(make_step, target=_H200, steps=1)
    sizes = _sizes(found, "aten::_cudnn_rnn")
    assert sizes[:2] == [64 * 8 * 256 * 4, 8 * 256 * 4]
    assert len(sizes) == 3  # and the workspace


def test_without_cudnn_the_cells_of_pytorch_run() -> None:
    def make_step() -> Callable[[], None]:
        layer, x = torch.nn.LSTM(64, 64, device="cuda"), torch.randn(8, 4, 64, device="cuda")

        def step() -> None:
            with torch.backends.cudnn.flags(enabled=False):
                layer(x)[0].sum().backward()

        return step

    found = trace(make_step, target=_H200, steps=1)
    assert len(_sizes(found, "aten::_thnn_fused_lstm_cell")) == 8 * 3
    assert not _sizes(found, "aten::_cudnn_rnn")


def _strided_state() -> torch.Tensor:
    return torch.zeros(1, 4, 128, device="cuda")[..., ::2]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda layer, x: layer.eval()(x)[0].sum().backward(), "only be called in training mode"),
        (lambda layer, x: layer.half()(x), "input (must have the type|dtype)"),
        (lambda layer, x: layer(x, _strided_state()), "rnn: hx is not contiguous"),
        (
            lambda layer, x: layer(x, torch.zeros(1, 4, 64)),
            "cuda:0, but its hidden on cpu",
        ),
    ],
    ids=["evaluation", "dtype", "state", "device"],
)
def test_what_cudnn_refuses_is_refused(break_it: Any, message: str) -> None:
    def make_step() -> Callable[[], None]:
        layer, x = torch.nn.GRU(64, 64, device="cuda"), torch.randn(8, 4, 64, device="cuda")
        return lambda: break_it(layer, x)

    with pytest.raises((RuntimeError, ValueError), match=message):
        trace(make_step, target=_H200, steps=1)


def test_packed_sequences_have_the_lengths_that_are_known() -> None:
    def make_step(lengths: Any) -> Callable[[], None]:
        layer = torch.nn.GRU(16, 32, batch_first=True, device="cuda")
        x = torch.randn(3, 7, 16, device="cuda", requires_grad=True)

        def step() -> None:
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                x, lengths(), batch_first=True, enforce_sorted=False
            )
            out, sizes = torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)
            assert packed.data.shape == (12, 16)
            assert out.shape == (3, 6, 32)
            assert sizes.tolist() == [4, 6, 2]
            out.sum().backward()
            assert x.grad is not None
            assert x.grad.shape == x.shape

        return step

    trace(lambda: make_step(lambda: torch.tensor([4, 6, 2])), target=_H200, steps=2)
    unknown = lambda: torch.randn(3, device="cuda").long().cpu()  # noqa: E731
    with pytest.raises(UntraceableError, match=r"test_recurrent\.py:\d+ packs sequences whose len"):
        trace(lambda: make_step(unknown), target=_H200, steps=1)
