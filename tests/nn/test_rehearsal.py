"""Pairs stay as they are where the model's code would notice that they were fused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vramkit.nn import fuse_conv_relu, fusion_report


class _Layers(nn.Module):
    """Two pairs in a list, then one that no code asks anything about."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [layer for _ in range(2) for layer in (nn.Conv2d(3, 3, 1), nn.ReLU())]
        self.layers, self.last = nn.ModuleList(pairs), nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())


class _Collects(_Layers):
    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return [*found, self.last(x)]


class _Pads(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(F.pad(x, (1, 1)) if type(layer) is nn.Conv2d else x)
        y: Tensor = self.last(x)
        return y


class _Reads(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) + 1 if hasattr(layer, "inplace") else layer(x)
        y: Tensor = self.last(x)
        return y


class _CallsForward(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        y, first = x, self.layers[0]
        assert isinstance(first, nn.Conv2d)
        for layer in self.layers:
            y = layer(y)
        return y + first.forward(x) + self.last(x)


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (_Collects, ["last.0"]),
        (_Pads, ["last.0"]),
        (_Reads, ["last.0"]),
        (_CallsForward, ["layers.2", "last.0"]),
    ],
)
def test_code_that_asks_for_types(make: Callable[[], Any], fused: list[str]) -> None:
    plain = make()
    model = fuse_conv_relu(copy.deepcopy(plain))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(plain(x), model(x))
    report = fusion_report(model)
    assert [entry.name for entry in report.fused] == fused
    for entry in report.left:
        assert entry.reason.startswith("fusing it would change what forward() does")
        assert entry.relu is entry.save is None


class _Counts(_Layers):
    """Notices two fused pairs, but not one."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if any(isinstance(layer, nn.ReLU) for layer in self.layers) else -x


def test_pairs_that_matter_together_only() -> None:
    plain = _Counts()
    model = fuse_conv_relu(copy.deepcopy(plain))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(plain(x), model(x))
    assert [entry.name for entry in fusion_report(model).fused] == ["layers.0"]
