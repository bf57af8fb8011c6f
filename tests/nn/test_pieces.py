"""Parts of a model that does not trace are fused unless its code may take them apart."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vramkit.nn import fuse_conv_relu, fusion_report
from vramkit.nn._pieces import taken_apart


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x)) + x


class _Model(nn.Module):
    """Does not trace, as it asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU())
        self.blocks = nn.Sequential(_Block(), _Block())
        self.block = _Block()

    def forward(self, x: Tensor) -> Any:
        return self.compute(x) if x.numel() > 0 else x

    def compute(self, x: Tensor) -> Any:
        raise NotImplementedError


class _Layers(_Model):
    def forward(self, x: Tensor, wanted: Sequence[int] = (0, 2)) -> Any:
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in wanted:
                found.append(x)
        return found, self.blocks(self.block(x))


class _LayersOfItsBase(_Layers):
    def forward(self, x: Tensor, wanted: Sequence[int] = (0, 2)) -> Any:
        return super().forward(x + 1, wanted)


class _First(_Model):
    def compute(self, x: Tensor) -> Any:
        return self.features[0](x), self.block(x)


class _Inner(_Model):
    def compute(self, x: Tensor) -> Any:
        return self.block.conv(x) + self.features(x)


class _Property(_Model):
    @property
    def first(self) -> nn.Module:
        return self.features[0]

    def compute(self, x: Tensor) -> Any:
        return self.first(x), self.block(x)


class _InOrder(_Model):
    def compute(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


class _Whole(_Model):
    def compute(self, x: Tensor) -> Any:
        x = self.features(*(x,)) if self.features is not None and self.block else x
        y: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return self.blocks(y)


FEATURES, BLOCKS, BLOCK = (
    ["features.0", "features.2"],
    ["blocks.0.conv", "blocks.1.conv"],
    "block.conv",
)


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (_Layers, [*BLOCKS, BLOCK]),
        (_LayersOfItsBase, [*BLOCKS, BLOCK]),
        (_First, [*BLOCKS, BLOCK]),
        (_Inner, [*FEATURES, *BLOCKS]),
        (_Property, [*BLOCKS, BLOCK]),
        (_InOrder, [*FEATURES, *BLOCKS, BLOCK]),
        (_Whole, [*FEATURES, *BLOCKS, BLOCK]),
    ],
)
def test_parts_that_are_called_as_a_whole(make: Callable[[], Any], fused: list[str]) -> None:
    plain = make()
    model = fuse_conv_relu(copy.deepcopy(plain))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model(x), plain(x))
    report = fusion_report(model)
    assert [entry.name for entry in report.fused] == fused
    for entry in report.left:
        part = entry.name.split(".")[0]
        assert entry.reason == (
            f"the code around {part} does not trace, and may use it in parts, as it does not only "
            "call it"
        )


def test_a_forward_of_its_own_is_read() -> None:
    model = _Whole()
    model.forward = functools.partial(_First.compute, model)  # type: ignore[method-assign]
    assert taken_apart(model) == {"features"}


def test_code_without_a_source_tells_nothing() -> None:
    model = _Model()
    names: dict[str, Any] = {}
    exec("def forward(x): return model.features[0](x)", {"model": model}, names)
    model.forward = names["forward"]  # type: ignore[method-assign]
    assert taken_apart(model) == frozenset()


class _Methods(_Block):
    """Has a method that forward does not call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x) + x

    def pair(self, x: Tensor) -> Tensor:
        return self.activate(self.conv(x))

    def activate(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(x)
        return y


class _Embeds(_Methods):
    def embed(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class _EmbedsTheWhole(_Methods):
    def embed(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.conv(x))
        return y

    def start(self) -> None:
        nn.init.zeros_(self.conv.weight)


def test_another_method_may_call_the_convolution_alone() -> None:
    model = nn.Sequential(_Embeds(), _EmbedsTheWhole())
    [left], [fusible] = fusion_report(model).left, fusion_report(model).fusible
    assert left.reason == "_Embeds.embed() calls it, too, and does not name 0.relu"
    assert fusible.name == "1.conv"
