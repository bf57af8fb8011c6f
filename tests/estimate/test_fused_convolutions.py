"""Estimates see what vramkit's convolutions with ReLU keep on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vramkit
from vramkit.estimate import Estimate
from vramkit.nn._paths import Save

_BLOCKS, _CHANNELS = 6, 32
_ACTIVATION = 4 * 2 * _CHANNELS * 64 * 64


class _Sums(nn.Module):
    """Adds each layer's output, so that nothing else keeps it."""

    def __init__(self, save: Save | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self._layer(save) for _ in range(_BLOCKS)])

    def _layer(self, save: Save | None) -> nn.Module:
        if save is None:
            return nn.Sequential(nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1), nn.ReLU())
        return vramkit.nn.ConvReLU2d(_CHANNELS, _CHANNELS, 3, padding=1, save=save)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def _estimate(save: Save | None, *, images: torch.Tensor | None = None) -> Estimate:
    x = torch.empty(2, _CHANNELS, 64, 64) if images is None else images
    return vramkit.estimate(_Sums(save), x, optimizer="sgd", steps=2)


def _kept(found: Estimate) -> int:
    """Activations that live when the forward pass of the last step ends."""
    return found.peak.by_kind["activations"]


def test_a_mask_takes_the_place_of_each_output() -> None:
    plain, output, mask = (_estimate(save) for save in (None, "output", "mask"))
    assert _kept(output) == _kept(plain)
    masks = [
        block.size_bytes for block in mask.trace.blocks if block.operator == "vramkit::relu_mask_"
    ]
    assert masks == 2 * _BLOCKS * [_ACTIVATION // 32]
    # The last layer's output is gone in some of the peaks.
    assert _kept(plain) - _kept(mask) >= (_BLOCKS - 1) * (_ACTIVATION - _ACTIVATION // 32)
    assert mask.peak_allocated_bytes < plain.peak_allocated_bytes


def test_the_passes_are_known_and_what_is_measured_on_the_gpu_is_uncertain() -> None:
    output, mask = _estimate("output"), _estimate("mask")
    assert output.trace.unknown == mask.trace.unknown == ()
    assert {"vramkit::bias_relu_", "vramkit::relu_backward"} <= output.trace.operators
    assert {"vramkit::relu_mask_", "vramkit::relu_mask_backward"} <= mask.trace.operators
    assert any("tries other kernels" in reason for reason in output.uncertain)
    assert not any("tries other kernels" in reason for reason in mask.uncertain)


@pytest.mark.parametrize(
    ("memory_format", "sums"),
    [
        (torch.contiguous_format, 2 * _CHANNELS),
        # 4 columns of 8 channels: 64 x 16 rows for each block.
        (torch.channels_last, 2 * 64 * 64 // (64 * 16) * _CHANNELS),
    ],
)
def test_partial_sums_of_the_bias_are_counted(
    memory_format: torch.memory_format, sums: int
) -> None:
    images = torch.empty(2, _CHANNELS, 64, 64).contiguous(memory_format=memory_format)
    found = vramkit.estimate(
        _Sums("mask").to(memory_format=memory_format),  # type: ignore[call-overload]
        images,
        optimizer="sgd",
        steps=1,
    )
    blocks = [
        block.size_bytes
        for block in found.trace.blocks
        if block.operator == "vramkit::relu_mask_backward"
    ]
    assert blocks == _BLOCKS * [_ACTIVATION, 4 * sums, 4 * _CHANNELS]


def test_layers_without_a_bias_and_in_inference() -> None:
    layer = vramkit.nn.ConvReLU2d(8, 8, 3, bias=False, save="mask")
    trained = vramkit.estimate(layer, torch.empty(2, 8, 16, 16), optimizer="sgd")
    assert "vramkit::relu_mask_" in trained.trace.operators
    inferred = vramkit.estimate(layer, torch.empty(2, 8, 16, 16))
    assert "vramkit::relu_mask_" not in inferred.trace.operators
