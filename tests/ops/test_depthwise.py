"""The depthwise operators against torch's convolution in float64, on every device."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from helpers.seeds import stress_seed
from torch import Tensor

import vramkit.nn._own  # noqa: F401 - loads the operators

OPS = torch.ops.vramkit
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VARIANTS = 2
CASES = 150


@dataclass
class Case:
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: tuple[int, int]

    @property
    def text(self) -> str:
        shapes = f"{tuple(self.x.shape)} * {tuple(self.weight.shape)}"
        return f"{self.x.dtype} {shapes} stride {self.stride} padding {self.padding}"

    def exact(self) -> tuple[Tensor, list[Tensor]]:
        """The convolution in float64, and what it was computed of."""
        tensors = [t.double().requires_grad_() for t in (self.x, self.weight)]
        bias = None if self.bias is None else self.bias.double()
        channels = self.x.shape[1]
        output = torch.nn.functional.conv2d(
            *tensors, bias, self.stride, self.padding, groups=channels
        )
        return output, tensors


def _random_case(draw: random.Random, device: str, dtype: torch.dtype) -> Case:
    kernel = draw.choice((3, 5, 7))
    padding = (draw.randint(0, kernel + 1), draw.randint(0, kernel // 2 + 1))
    smallest = [max(1, kernel - 2 * p) for p in padding]
    height, width = (n + draw.randint(0, 18) for n in smallest)
    channels = 8 * draw.choice((1, 2, 3, 4, 5, 8, 17, 20))
    x = torch.randn(draw.randint(1, 3), channels, height, width, device=device).to(dtype)
    weight = torch.randn(channels, 1, kernel, kernel, device=device).to(dtype)
    bias = torch.randn(channels, device=device).to(dtype) if draw.random() < 0.7 else None
    x = x.contiguous(memory_format=torch.channels_last)
    return Case(x, weight, bias, draw.choice((1, 2)), padding)


def _compare(found: Tensor, exact: Tensor, text: str) -> None:
    """The result is rounded once, and what it is made of is added up in float32."""
    assert found.shape == exact.shape, text
    error = (found.double() - exact).abs()
    limit = torch.finfo(found.dtype).eps * exact.abs() + 2e-6 * exact.abs().max().clamp(min=1) * 8
    assert (error <= limit).all(), f"{text}: error {error.max()} of {exact.abs().max()}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_convolutions_and_gradients_equal_float64(device: str, dtype: torch.dtype) -> None:
    seed = stress_seed()
    torch.manual_seed(seed % 2**63)
    draw = random.Random(seed)
    for number in range(CASES):
        case = _random_case(draw, device, dtype)
        conv, tensors = case.exact()
        given = (case.stride, *case.padding)
        relu = draw.random() < 0.7
        output = OPS.depthwise_conv_relu(
            case.x, case.weight, case.bias, *given, relu, number % VARIANTS
        )
        assert output.is_contiguous(memory_format=torch.channels_last)
        _compare(output, conv.relu() if relu else conv, case.text)
        grad = torch.randn_like(output)
        wanted = torch.autograd.grad(conv, tensors, grad.double())
        size = case.x.shape[2:]
        found = OPS.depthwise_grad_input(grad, case.weight, *size, *given, number % VARIANTS)
        assert found.is_contiguous(memory_format=torch.channels_last)
        _compare(found, wanted[0], case.text)
        kernel = case.weight.shape[2]
        found = OPS.depthwise_grad_weight(grad, case.x, kernel, *given, number % VARIANTS)
        _compare(found, wanted[1], case.text)
        again = OPS.depthwise_grad_weight(grad, case.x, kernel, *given, number % VARIANTS)
        assert torch.equal(found, again)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_all_variants_give_the_same(device: str, kernel: int, stride: int) -> None:
    x = torch.randn(2, 24, 17, 19, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(24, 1, kernel, kernel, device=device)
    given = (stride, kernel // 2, kernel // 2)
    outputs = [OPS.depthwise_conv_relu(x, weight, None, *given, True, v) for v in range(VARIANTS)]
    grad = torch.randn_like(outputs[0])
    inputs = [OPS.depthwise_grad_input(grad, weight, 17, 19, *given, v) for v in range(VARIANTS)]
    for found in (outputs, inputs):
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)
    weights = [OPS.depthwise_grad_weight(grad, x, kernel, *given, v) for v in range(VARIANTS)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-4)


def test_relu_keeps_nan(device: str) -> None:
    x = torch.ones(1, 8, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(8, 1, 3, 3, device=device)
    weight[1] = float("nan")
    weight[2] = -1
    output = OPS.depthwise_conv_relu(x, weight, None, 1, 0, 0, True, 0).flatten()
    assert output[[0, 2, 3]].tolist() == [9, 0, 9]
    assert output[1].isnan()


def test_an_empty_batch(device: str) -> None:
    x = torch.ones(0, 8, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(8, 1, 3, 3, device=device)
    output = OPS.depthwise_conv_relu(x, weight, None, 1, 1, 1, True, 0)
    assert output.shape == x.shape
    assert OPS.depthwise_grad_input(output, weight, 3, 3, 1, 1, 1, 0).shape == x.shape
    assert OPS.depthwise_grad_weight(output, x, 3, 1, 1, 1, 0).eq(0).all()


def test_what_does_not_fit_is_refused(device: str) -> None:
    plain = torch.ones(1, 8, 6, 6, device=device)
    x = plain.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(8, 1, 3, 3, device=device)
    conv, pad = OPS.depthwise_conv_relu, (1, 1)
    for call, text in [
        (lambda: conv(plain, weight, None, 1, *pad, True, 0), "channels-last"),
        (lambda: conv(x, weight[..., :2, :2].clone(), None, 1, *pad, True, 0), "3, 5 or 7 taps"),
        (lambda: conv(x, weight, None, 3, *pad, True, 0), "stride is 1 or 2, got 3"),
        (lambda: conv(x, weight, None, 1, *pad, True, 9), "no depthwise variant 9"),
        (lambda: conv(x, weight[:4], None, 1, *pad, True, 0), r"must be \(C, 1, k, k\)"),
        (lambda: conv(x.half(), weight, None, 1, *pad, True, 0), "must have the dtype"),
        (
            lambda: conv(
                x[:, :6].clone(memory_format=torch.channels_last),
                weight[:6],
                None,
                1,
                *pad,
                True,
                0,
            ),
            "in eights, got 6",
        ),
        (
            lambda: conv(
                x[..., :1, :1].clone(memory_format=torch.channels_last),
                weight,
                None,
                1,
                0,
                0,
                True,
                0,
            ),
            "larger than the padded input",
        ),
        (lambda: conv(x.double(), weight.double(), None, 1, *pad, True, 0), "float32, float16"),
        (lambda: OPS.depthwise_grad_input(x, weight, 9, 6, 1, *pad, 0), "shape of the output"),
    ]:
        with pytest.raises(RuntimeError, match=text):
            call()


def test_opcheck(device: str) -> None:
    x = torch.randn(1, 8, 5, 6, device=device).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(8, 1, 3, 3, device=device), torch.randn(8, device=device)
    output = OPS.depthwise_conv_relu(x, weight, bias, 2, 1, 1, True, 0)
    for operator, arguments in [
        (OPS.depthwise_conv_relu, (x, weight, bias, 2, 1, 1, True, 0)),
        (OPS.depthwise_grad_input, (output, weight, 5, 6, 2, 1, 1, 0)),
        (OPS.depthwise_grad_weight, (output, x, 3, 2, 1, 1, 0)),
    ]:
        torch.library.opcheck(operator.default, arguments)
