"""apex's functions: its argument orders, its results, and the gradients that it gives."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vramkit.contrib import conv_bias_relu
from vramkit.contrib.conv_bias_relu import (
    ConvBias,
    ConvBiasMaskReLU,
    ConvBiasReLU,
    ConvFrozenScaleBiasReLU,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(params=DTYPES, ids=str)
def tensors(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    torch.manual_seed(5)
    make = {"dtype": request.param, "requires_grad": True}
    return {
        "x": torch.randn(2, 8, 9, 9, **make),
        "weight": torch.randn(16, 8, 3, 3, **make),
        "bias": torch.randn(1, 16, 1, 1, **make),
        "scale": torch.randn(1, 16, 1, 1, **make),
        "mask": (torch.randn(2, 16, 5, 5) > 0).to(torch.int8),
    }


def _check(found: Tensor, wanted: Tensor, inputs: list[Tensor]) -> None:
    eps = torch.finfo(found.dtype).eps
    close = {"rtol": 40 * eps, "atol": 200 * eps}
    torch.testing.assert_close(found, wanted, **close)
    grad = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(wanted, inputs, grad, retain_graph=True),
        rtol=40 * eps,
        atol=1000 * eps,
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ConvBiasReLU", ["x", "weight", "bias", "padding", "stride"]),
        ("ConvBias", ["x", "weight", "bias", "padding", "stride"]),
        ("ConvBiasMaskReLU", ["x", "weight", "bias", "mask", "padding", "stride"]),
        ("ConvFrozenScaleBiasReLU", ["x", "weight", "scale", "bias", "padding", "stride"]),
    ],
)
def test_arguments_are_in_apexs_order(name: str, arguments: list[str]) -> None:
    assert list(inspect.signature(getattr(conv_bias_relu, name)).parameters) == arguments


def test_bias_and_relu(tensors: dict[str, Tensor]) -> None:
    x, weight, bias = tensors["x"], tensors["weight"], tensors["bias"]
    plain = F.conv2d(x, weight, bias.flatten(), stride=2, padding=1)
    _check(ConvBiasReLU(x, weight, bias, 1, 2), plain.relu(), [x, weight, bias])
    _check(ConvBias(x, weight, bias, 1, 2), plain, [x, weight, bias])


def test_a_mask(tensors: dict[str, Tensor]) -> None:
    x, weight, bias, mask = (tensors[name] for name in ("x", "weight", "bias", "mask"))
    plain = F.conv2d(x, weight, bias.flatten(), stride=2, padding=1) * mask
    _check(ConvBiasMaskReLU(x, weight, bias, mask, 1, 2), plain.relu(), [x, weight, bias])


def test_a_mask_of_more_images_than_there_are() -> None:
    x, weight, mask = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 1, 1), torch.ones(5, 3, 4, 4)
    with pytest.raises(RuntimeError, match="must match the existing size"):
        ConvBiasMaskReLU(x, weight, None, mask, 0, 1)


def test_a_frozen_scale(tensors: dict[str, Tensor]) -> None:
    x, weight, scale, bias = (tensors[name] for name in ("x", "weight", "scale", "bias"))
    found = ConvFrozenScaleBiasReLU(x, weight, scale, bias, 1, 2)
    factors, shift = scale.detach().double().view(-1, 1, 1, 1), bias.detach().double().flatten()
    wanted = F.conv2d(x.double(), weight.double() * factors, shift, stride=2, padding=1).relu()
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=40 * eps, atol=200 * eps)
    found.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert scale.grad is None
    assert bias.grad is None
