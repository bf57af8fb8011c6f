"""Models that are fused already, reasons in reports, and tracing of fused models."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vramkit
from vramkit.contrib import conv_bias_relu as apex


def _model() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )


def _reasons(model: nn.Module) -> dict[str, str]:
    return {entry.name: entry.reason for entry in vramkit.nn.fusion_report(model).left}


class _Block(nn.Module):
    """Convolution and normalization, an addition, then ReLU, as in ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.norm(self.conv(x)) + x)
        return y


class _Branches(nn.Module):
    """Code that does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1)])
        self.idle = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            x = x * 2
        y: Tensor = self.relu(self.layers[0](x))
        return y


def test_save_counts_for_pairs_that_are_fused() -> None:
    model = vramkit.nn.fuse_conv_relu(_model())
    before = [entry.save for entry in vramkit.nn.fusion_report(model).fused]
    assert before == ["output", "mask"]
    vramkit.nn.fuse_conv_relu(model)
    assert [entry.save for entry in vramkit.nn.fusion_report(model).fused] == before
    vramkit.nn.fuse_conv_relu(model, save="mask")
    assert [entry.save for entry in vramkit.nn.fusion_report(model).fused] == ["mask", "mask"]


@pytest.mark.parametrize("fold", [False, True])
def test_a_normalization_without_relu_is_not_to_blame(fold: bool) -> None:
    block = _Block().eval()
    swish = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU()).eval()
    for model in (block, swish):
        vramkit.nn.fuse_conv_relu(model, fold_batch_norm=fold)
    assert _reasons(block) == {"conv": "no ReLU follows, but add"}
    assert _reasons(swish) == {"0": "no ReLU follows, but 2 (SiLU)"}


def test_a_normalization_before_relu_can_be_folded() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    assert "fold_batch_norm=True folds it in evaluation mode" in _reasons(model)["0"]


def test_code_that_does_not_trace_is_named_with_its_line() -> None:
    first = inspect.getsourcelines(_Branches.forward)[1]
    for model, name in ((_Branches(), ""), (nn.Sequential(_Branches()), "0.")):
        reasons = _reasons(model)
        text = reasons[f"{name}layers.0"]
        where = f"0 ({_Branches.__name__})" if name else _Branches.__name__
        assert text.startswith(f"the code of {where} does not trace at {__file__}:{first + 1} (")
        assert "TraceError: symbolically traced variables cannot be used" in text
        assert reasons[f"{name}idle.0"].startswith("no ReLU follows")


def test_a_convolution_that_is_not_called() -> None:
    model = _Block()
    model.other = nn.Conv2d(4, 4, 1)
    assert _reasons(model)["other"] == "it is not called"


def test_fx_traces_a_fused_model() -> None:
    model, x = vramkit.nn.fuse_conv_relu(_model()), torch.randn(2, 3, 16, 16)
    traced = torch.fx.symbolic_trace(model)
    for graph in (traced, pickle.loads(pickle.dumps(traced))):
        assert torch.equal(graph(x), model(x))
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets.count(vramkit.nn.functional.conv_relu) == 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_jit_traces_a_fused_model(training: bool, gradients: bool) -> None:
    model = vramkit.nn.fuse_conv_relu(_model()).train(training)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, torch.randn(2, 3, 16, 16))
        x = torch.randn(3, 3, 20, 20)
        torch.testing.assert_close(traced(x), model(x))
    assert "vramkit::" not in str(traced.inlined_graph)


def test_functions_of_apex_take_no_bias() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    scale, mask = torch.rand(4), torch.ones(1)
    plain = torch.nn.functional.conv2d(x, weight, None, 2, 1)
    calls: list[tuple[Any, Tensor]] = [
        (apex.ConvBias(x, weight, None, 1, 2), plain),
        (apex.ConvBiasReLU(x, weight, None, 1, 2), plain.relu()),
        (apex.ConvBiasMaskReLU(x, weight, None, mask, 1, 2), plain.relu()),
        (
            apex.ConvFrozenScaleBiasReLU(x, weight, scale, None, 1, 2),
            (plain * scale[:, None, None]).relu(),
        ),
    ]
    for found, expected in calls:
        torch.testing.assert_close(found, expected)
