"""The stem operator against torch's convolution in float64, on every device."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.seeds import stress_seed

import vramkit.nn._own  # noqa: F401 - loads the operators

OPS = torch.ops.vramkit
CASES = 40


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_random_stems_equal_float64(device: str, dtype: torch.dtype) -> None:
    seed = stress_seed()
    torch.manual_seed(seed % 2**63)
    draw = random.Random(seed)
    for _ in range(CASES):
        kernel = draw.choice((3, 7))
        padding = (draw.randint(0, kernel // 2 + 1), draw.randint(0, kernel // 2 + 1))
        size = [max(1, kernel - 2 * p) + draw.randint(0, 45) for p in padding]
        channels, outputs = draw.choice((3, 4)), 8 * draw.randint(1, 12)
        forms = (torch.contiguous_format, torch.channels_last)
        x = torch.randn(draw.randint(1, 3), channels, *size, device=device).to(dtype)
        x = x.contiguous(memory_format=draw.choice(forms))
        if draw.random() < 0.2:
            # PyTorch takes no image without pixels.
            x = x[..., 1:] if size[1] > 1 and size[1] + 2 * padding[1] > kernel else x
        weight = torch.randn(outputs, channels, kernel, kernel, device=device).to(dtype)
        weight = weight.contiguous(memory_format=draw.choice(forms))
        bias = torch.randn(outputs, device=device).to(dtype) if draw.random() < 0.7 else None
        relu = draw.random() < 0.7
        output = OPS.stem_conv_relu(x, weight, bias, *padding, relu, draw.choice((0, 1)))
        exact = torch.nn.functional.conv2d(
            *(x.double(), weight.double(), None if bias is None else bias.double()),
            stride=2,
            padding=padding,
        )
        exact = exact.relu() if relu else exact
        assert output.is_contiguous(memory_format=torch.channels_last)
        error = (output.double() - exact).abs()
        limit = torch.finfo(dtype).eps * exact.abs() + 2e-5 * exact.abs().max().clamp(min=1)
        text = f"{tuple(x.shape)} {x.stride()} * {tuple(weight.shape)} {padding} {dtype}"
        assert (error <= limit).all(), f"{text}: {error.max()} of {exact.abs().max()}"


def test_what_does_not_fit_is_refused(device: str) -> None:
    x = torch.ones(1, 3, 9, 9, device=device, dtype=torch.bfloat16)
    weight = torch.ones(32, 3, 3, 3, device=device, dtype=torch.bfloat16)
    stem = OPS.stem_conv_relu
    for call, text in [
        (lambda: stem(x.float(), weight.float(), None, 1, 1, True, 0), "float16 or bfloat16"),
        (lambda: stem(x, weight.half(), None, 1, 1, True, 0), "the dtype of the input"),
        (lambda: stem(x[:, :2], weight[:, :2], None, 1, 1, True, 0), "3 or 4 channels"),
        (lambda: stem(x, weight[..., :2, :2], None, 1, 1, True, 0), "3 x 3 or 7 x 7"),
        (lambda: stem(x, weight[:30], None, 1, 1, True, 0), "8, 16, ... or 96"),
        (lambda: stem(x[..., :1], weight, None, 0, 0, True, 0), "larger than the padded"),
        (lambda: stem(x, weight, None, 1, 1, True, 7), "no stem variant 7"),
    ]:
        with pytest.raises(RuntimeError, match=text):
            call()


def test_an_empty_batch(device: str) -> None:
    x = torch.ones(0, 3, 9, 9, device=device, dtype=torch.bfloat16)
    weight = torch.ones(32, 3, 3, 3, device=device, dtype=torch.bfloat16)
    assert OPS.stem_conv_relu(x, weight, None, 1, 1, True, 0).shape == (0, 32, 5, 5)


def test_opcheck(device: str) -> None:
    x = torch.randn(1, 3, 9, 10, device=device, dtype=torch.bfloat16)
    weight = torch.randn(32, 3, 3, 3, device=device, dtype=torch.bfloat16)
    bias = torch.randn(32, device=device, dtype=torch.bfloat16)
    torch.library.opcheck(OPS.stem_conv_relu.default, (x, weight, bias, 1, 1, True, 0))
