"""Tensors that are plain attributes of a module stay where they are, as with ``Module.to()``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import vramkit
from vramkit.errors import UntraceableError

_SAMPLE = torch.empty(4, 8)


class _Scaled(torch.nn.Module):
    """Multiplies by an attribute, and keeps its last output."""

    def __init__(self, *, moves: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.scale = torch.ones(8)
        self.calls = [torch.zeros(())]
        self.last: torch.Tensor | None = None
        self.moves = moves

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[0] += 1
        self.last = self.layer(x)
        return self.last * (self.scale.to(x.device) if self.moves else self.scale)


def test_they_may_be_moved() -> None:
    model = _Scaled(moves=True)
    first = vramkit.estimate(model, _SAMPLE, optimizer="adamw")
    assert first.peak.by_kind["parameters"] == 4 * (8 * 8 + 8)
    model(torch.ones(4, 8))  # keeps an output, which no copy is made of
    again = vramkit.estimate(model, _SAMPLE, optimizer="adamw")
    assert again.peak.by_kind == first.peak.by_kind
    assert model.calls[0].item() == 1


def test_those_without_data_are_on_the_device() -> None:
    with torch.device("meta"):
        model = _Scaled()
    assert vramkit.estimate(model, _SAMPLE).peak.by_kind["data"] == 4 * (8 + 1 + 4 * 8)


@pytest.mark.parametrize("model", [_Scaled(), _Scaled])
def test_those_that_stay_are_refused_by_their_line(
    model: torch.nn.Module | Callable[[], torch.nn.Module],
) -> None:
    text = (
        r"test_attributes\.py:30 mixes tensors on the CPU and on 'cuda', but a GPU needs all "
        r"of them on the same device, .*; move all of them to 'cuda'; register_buffer"
    )
    with pytest.raises(UntraceableError, match=text):
        vramkit.estimate(model, _SAMPLE)


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm:FutureWarning")
def test_weights_that_a_hook_computes() -> None:
    model = torch.nn.utils.weight_norm(torch.nn.Linear(8, 8, bias=False))
    assert vramkit.estimate(model, _SAMPLE, optimizer="sgd").parameters == 8 * 8 + 8
