"""The grouped operators against torch's convolution in float64, on every device."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from helpers.seeds import stress_seed
from torch import Tensor

import vramkit.nn._own  # noqa: F401 - loads the operators

OPS = torch.ops.vramkit
DTYPES = (torch.float16, torch.bfloat16)
FORMS = (torch.contiguous_format, torch.channels_last)
VARIANTS = 3
# The CPU computes the products of a warp one by one.
CASES = {"cpu": 40, "cuda": 150}


@dataclass
class Case:
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: tuple[int, int]

    @property
    def text(self) -> str:
        shapes = f"{tuple(self.x.shape)} * {tuple(self.weight.shape)} {self.weight.stride()}"
        return f"{self.x.dtype} {shapes} stride {self.stride} padding {self.padding}"

    def exact(self) -> tuple[Tensor, list[Tensor]]:
        """The convolution in float64, and what it was computed of."""
        tensors = [t.double().requires_grad_() for t in (self.x, self.weight)]
        bias = None if self.bias is None else self.bias.double()
        groups = self.x.shape[1] // self.weight.shape[1]
        output = torch.nn.functional.conv2d(
            *tensors, bias, self.stride, self.padding, groups=groups
        )
        return output, tensors


def _random_case(draw: random.Random, device: str, dtype: torch.dtype) -> Case:
    padding = (draw.randint(0, 3), draw.randint(0, 3))
    height, width = (max(1, 3 - 2 * p) + draw.randint(0, 26) for p in padding)
    group = draw.choice((1, 2, 4, 8, 16, 32))
    # Whole and partial slabs of 32 and 64 channels.
    channels = max(group, 8) * draw.randint(1, max(1, 80 // max(group, 8)))
    x = torch.randn(draw.randint(1, 2), channels, height, width, device=device).to(dtype)
    weight = torch.randn(channels * group * 9 + 1, device=device).to(dtype)
    # Parameters of flattened buffers may begin anywhere.
    weight = weight[int(draw.random() < 0.2) :][: channels * group * 9]
    weight = weight.reshape(channels, group, 3, 3)
    if draw.random() < 0.5:
        weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(channels, device=device).to(dtype) if draw.random() < 0.7 else None
    x = x.contiguous(memory_format=torch.channels_last)
    return Case(x, weight, bias, draw.choice((1, 2)), padding)


def _compare(found: Tensor, exact: Tensor, text: str) -> None:
    """The result is rounded once, and what it is made of is added up in float32."""
    assert found.shape == exact.shape, text
    error = (found.double() - exact).abs()
    limit = torch.finfo(found.dtype).eps * exact.abs() + 2e-5 * exact.abs().max().clamp(min=1)
    assert (error <= limit).all(), f"{text}: error {error.max()} of {exact.abs().max()}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_convolutions_and_gradients_equal_float64(device: str, dtype: torch.dtype) -> None:
    seed = stress_seed()
    torch.manual_seed(seed % 2**63)
    draw = random.Random(seed)
    for number in range(CASES[device]):
        case = _random_case(draw, device, dtype)
        variant = number % VARIANTS
        conv, tensors = case.exact()
        given = (case.stride, *case.padding)
        relu = draw.random() < 0.7
        output = OPS.grouped_conv_relu(case.x, case.weight, case.bias, *given, relu, variant)
        assert output.is_contiguous(memory_format=torch.channels_last)
        _compare(output, conv.relu() if relu else conv, case.text)
        grad = torch.randn_like(output)
        wanted = torch.autograd.grad(conv, tensors, grad.double())
        found = OPS.grouped_grad_input(grad, case.weight, *case.x.shape[2:], *given, variant)
        assert found.is_contiguous(memory_format=torch.channels_last)
        _compare(found, wanted[0], case.text)
        form = draw.choice(FORMS)
        options = (case.weight.shape[1], *given, form is torch.channels_last, variant)
        found = OPS.grouped_grad_weight(grad, case.x, *options)
        assert found.is_contiguous(memory_format=form)
        _compare(found, wanted[1], case.text)
        assert torch.equal(found, OPS.grouped_grad_weight(grad, case.x, *options))


@pytest.mark.parametrize("group", [4, 8, 16, 32])
@pytest.mark.parametrize("stride", [1, 2])
def test_all_variants_give_the_same(device: str, group: int, stride: int) -> None:
    x = torch.randn(1, 64, 21, 37, device=device, dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, group, 3, 3, device=device, dtype=torch.float16)
    given = (stride, 1, 1)
    outputs = [OPS.grouped_conv_relu(x, weight, None, *given, True, v) for v in range(VARIANTS)]
    grad = torch.randn_like(outputs[0])
    inputs = [OPS.grouped_grad_input(grad, weight, 21, 37, *given, v) for v in range(VARIANTS)]
    for found in (outputs, inputs):
        assert all(torch.equal(other, found[0]) for other in found[1:])
    weights = [OPS.grouped_grad_weight(grad, x, group, *given, False, v) for v in range(VARIANTS)]
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=2e-3, atol=2e-2)


def test_relu_keeps_nan(device: str) -> None:
    x = torch.ones(1, 8, 3, 3, device=device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(8, 8, 3, 3, device=device, dtype=torch.bfloat16)
    weight[1] = float("nan")
    weight[2] = -1
    output = OPS.grouped_conv_relu(x, weight, None, 1, 0, 0, True, 0).flatten()
    assert output[[0, 2, 3]].tolist() == [72, 0, 72]
    assert output[1].isnan()


def test_an_empty_batch(device: str) -> None:
    x = torch.ones(0, 16, 3, 3, device=device, dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(16, 4, 3, 3, device=device, dtype=torch.float16)
    output = OPS.grouped_conv_relu(x, weight, None, 1, 1, 1, True, 0)
    assert output.shape == x.shape
    assert OPS.grouped_grad_input(output, weight, 3, 3, 1, 1, 1, 0).shape == x.shape
    assert OPS.grouped_grad_weight(output, x, 4, 1, 1, 1, True, 0).eq(0).all()


def test_what_does_not_fit_is_refused(device: str) -> None:
    plain = torch.ones(1, 24, 6, 6, device=device, dtype=torch.float16)
    x = plain.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(24, 8, 3, 3, device=device, dtype=torch.float16)
    conv = OPS.grouped_conv_relu
    narrow = x[..., :1].contiguous(memory_format=torch.channels_last)
    for call, text in [
        (lambda: conv(plain, weight, None, 1, 1, 1, True, 0), "channels-last"),
        (lambda: conv(x.float(), weight.float(), None, 1, 1, 1, True, 0), "float16 or bfloat16"),
        (lambda: conv(x, weight.bfloat16(), None, 1, 1, 1, True, 0), "must have the dtype"),
        (lambda: conv(x, weight[..., :2], None, 1, 1, 1, True, 0), "C / groups, 3, 3"),
        (lambda: conv(x, weight[:8], None, 1, 1, 1, True, 0), "C / groups, 3, 3"),
        (lambda: conv(x, weight[:, :3].clone(), None, 1, 1, 1, True, 0), "16 or 32 channels, got"),
        (lambda: conv(x, weight.repeat(1, 2, 1, 1), None, 1, 1, 1, True, 0), "in eights, got 24"),
        (lambda: conv(x, weight, None, 3, 1, 1, True, 0), "stride is 1 or 2, got 3"),
        (lambda: conv(x, weight, None, 1, 1, 1, True, 9), "no grouped variant 9"),
        (lambda: conv(narrow, weight, None, 1, 1, 0, True, 0), "larger than the padded"),
        (lambda: OPS.grouped_grad_input(x, weight, 9, 9, 1, 1, 1, 0), "shape of the output"),
        (lambda: OPS.grouped_grad_weight(x, x, 8, 2, 1, 1, True, 0), "shape of the output"),
    ]:
        with pytest.raises(RuntimeError, match=text):
            call()


def test_opcheck(device: str) -> None:
    x = torch.randn(1, 16, 9, 10, device=device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 8, 3, 3, device=device, dtype=torch.bfloat16)
    bias = torch.randn(16, device=device, dtype=torch.bfloat16)
    check = torch.library.opcheck
    check(OPS.grouped_conv_relu.default, (x, weight, bias, 2, 1, 0, True, 0))
    grad = OPS.grouped_conv_relu(x, weight, None, 2, 1, 0, False, 0)
    check(OPS.grouped_grad_input.default, (grad, weight, 9, 10, 2, 1, 0, 0))
    for channels_last in (False, True):
        check(OPS.grouped_grad_weight.default, (grad, x, 8, 2, 1, 0, channels_last, 0))
