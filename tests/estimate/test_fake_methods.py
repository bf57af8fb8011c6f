"""What steps do with PyTorch beside training: cells, copies, files, devices and communication."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vramkit.errors import UntraceableError
from vramkit.estimate import find_target
from vramkit.estimate._recorder import Phase, Trace
from vramkit.estimate._trace import trace

_H100 = find_target("h100")


def traced(make_step: Callable[[], Callable[[], Any]]) -> Trace:
    return trace(make_step, target=_H100, steps=1)


def sizes_of(found: Trace, operator: str) -> list[int]:
    return [block.size_bytes for block in found.blocks if block.operator == operator]


@pytest.mark.parametrize(
    ("cell", "saved"), [(torch.nn.GRUCell, 5), (torch.nn.LSTMCell, 4)], ids=["GRU", "LSTM"]
)
def test_fused_cells_keep_their_gates(cell: Any, saved: int) -> None:
    def make_step() -> Callable[[], None]:
        layer, x = cell(128, 256, device="cuda"), torch.randn(32, 128, device="cuda")

        def step() -> None:
            out = layer(x)
            (out[0] if isinstance(out, tuple) else out).sum().backward()

        return step

    found = traced(make_step)
    forward = [b for b in found.blocks if "_thnn_fused" in b.operator and b.phase is Phase.FORWARD]
    state = 32 * 256 * 4
    assert [each.size_bytes for each in forward[:2]] == [saved * state, state]
    gates = 3 if saved == 5 else 4
    backward = [b for b in found.blocks if "cell_backward" in b.operator]
    assert backward[0].size_bytes == gates * 32 * 256 * 4


def test_inference_mode_takes_the_blocks_of_no_grad() -> None:
    layer = torch.nn.MultiheadAttention(256, 4, batch_first=True)

    def make_step(without_gradients: Any) -> Callable[[], None]:
        layer.to("cuda")
        x = torch.randn(8, 512, 256, device="cuda")

        def step() -> None:
            with without_gradients():
                torch.nn.functional.layer_norm(layer(x, x, x, need_weights=False)[0], (256,))

        return step

    outside, inside = (
        traced(functools.partial(make_step, mode)) for mode in (torch.no_grad, torch.inference_mode)
    )
    assert [b.size_bytes for b in inside.blocks] == [b.size_bytes for b in outside.blocks]
    assert inside.attention == outside.attention != {}


def test_quantised_tensors_have_the_size_of_their_dtype() -> None:
    def make_step() -> Callable[[], object]:
        x = torch.randn(64, 64, device="cuda")
        return lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)

    assert sizes_of(traced(make_step), "aten::quantize_per_tensor") == [64 * 64]


def test_saving_writes_nothing(tmp_path: Path) -> None:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.Linear(8, 8, device="cuda")
        return lambda: torch.save(layer.state_dict(), tmp_path / "model.pt")

    assert traced(make_step).events().peak_live_bytes == (64 + 8) * 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "mixes",
    [
        lambda x: torch.nn.functional.conv2d(x.view(1, 1, 64, 64), torch.ones(1, 1, 3, 3)),
        lambda x: torch.ones(64)[torch.arange(3, device="cuda")] + x,
        lambda x: x + torch.ones(64),
    ],
    ids=["convolution", "index", "sum"],
)
def test_tensors_of_two_devices_in_one_operator_are_refused(mixes: Callable[[Any], Any]) -> None:
    def make_step() -> Callable[[], object]:
        x = torch.randn(64, 64, device="cuda")
        return lambda: mixes(x)

    with pytest.raises(RuntimeError, match=r"same device"):
        traced(make_step)


def test_models_are_copied_with_their_parameters_and_nothing_more() -> None:
    def make_step() -> Callable[[], None]:
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128)
        model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to("cuda")
        model(torch.randn(4, 8, 64, device="cuda")).sum().backward()

        def step() -> None:
            average = copy.deepcopy(model)
            assert all(each.is_leaf and each.requires_grad for each in average.parameters())
            assert all(each.grad is None for each in average.parameters())

        return step

    found = traced(make_step)
    copied = sum(block.size_bytes for block in found.blocks if block.step == 0)
    assert copied == 4 * found.parameters


def test_a_tensor_is_copied_with_its_whole_storage_and_its_gradient() -> None:
    def make_step() -> Callable[[], object]:
        whole = torch.randn(64, 64, device="cuda")
        part = whole[:2].detach().requires_grad_()
        (2 * part).sum().backward()

        def step() -> None:
            first, second = copy.deepcopy([part, part])
            assert first is second
            assert first.shape == first.grad.shape == (2, 64)
            with pytest.raises(RuntimeError, match="graph leaves"):
                copy.deepcopy(2 * part)

        return step

    sizes = [block.size_bytes for block in traced(make_step).blocks if block.step == 0]
    assert sizes[:2] == [64 * 64 * 4, 2 * 64 * 4]


def test_sizes_that_follow_from_known_values_are_known() -> None:
    shapes: list[Any] = []

    def make_step() -> Callable[[], None]:
        mask = torch.arange(16, device="cuda") % 3 == 0
        x = torch.randn(16, 8, device="cuda")
        return lambda: shapes.append((mask.nonzero().shape, x[mask.nonzero()[:, 0]].shape))

    found = traced(make_step)
    assert shapes == [((6, 1), (6, 8))]
    assert sizes_of(found, "aten::nonzero") == [4, 1, 48, 1023] * 2


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("but its data is not allocated yet.", "make it a custom operator with a fake"),
        ("Distributed package doesn't have NCCL built in", "pass world_size="),
    ],
)
def test_communication_is_refused_with_advice(message: str, advice: str) -> None:
    def make_step() -> Callable[[], None]:
        raise RuntimeError(message)

    with pytest.raises(UntraceableError, match=rf"test_fake_methods\.py:\d+ .*; .*{advice}"):
        traced(make_step)
