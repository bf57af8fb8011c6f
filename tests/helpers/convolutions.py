"""Random convolutions, and what they should give: torch's in float64."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d

CONVOLUTIONS = {1: conv1d, 2: conv2d, 3: conv3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass
class Case:
    """One convolution with ReLU: its tensors and arguments."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    arguments: dict[str, Any]
    shapes: str = field(default="")

    @property
    def tensors(self) -> list[Tensor]:
        """What has a gradient."""
        return [t for t in (self.x, self.weight, self.bias) if t is not None]

    def convolve(self, tensors: Sequence[Tensor]) -> Tensor:
        """torch's own convolution of other tensors of these shapes."""
        x, weight, *bias = tensors
        convolution = CONVOLUTIONS[weight.ndim - 2]
        return convolution(x, weight, *(bias or [None]), **self.arguments)


def random_case(draw: random.Random, device: str, dtype: torch.dtype) -> Case:
    """A small convolution of any kind."""
    spatial = draw.choice([1, 2, 2, 2, 3])
    groups = draw.choice([1, 1, 2, 4])
    channels = groups * draw.choice([1, 3, 4, 8])
    # torch 2.13 reads memory that it has not written where oneDNN convolves bfloat16 in groups of
    # one channel with several outputs, channels-last.
    single = channels == groups and dtype == torch.bfloat16
    outputs = groups * draw.choice([1] if single else [1, 2, 5, 8])
    kernel = [draw.choice([1, 2, 3, 5]) for _ in range(spatial)]
    dilation = [draw.choice([1, 1, 2]) for _ in range(spatial)]
    sizes = [(k - 1) * d + draw.randint(1, 9) for k, d in zip(kernel, dilation, strict=True)]
    stride: Any = [draw.choice([1, 1, 2, 3]) for _ in range(spatial)]
    if single and device == "cpu":
        # Nor does it write the gradient of a weight that meets no input, which strides can do.
        stride = 1
    # torch 2.13 crashes on the CPU where more is padded than a dilated kernel of one reaches.
    padding: Any = [
        draw.randint(0, min(2, (k - 1) * d)) for k, d in zip(kernel, dilation, strict=True)
    ]
    if draw.random() < 0.2:
        stride, padding = 1, draw.choice(["same", "valid", 0])
    batch = draw.choice([0, 1, 2, 3])
    make = {"device": device, "dtype": dtype}
    x = torch.randn(batch, channels, *sizes, **make)
    if spatial > 1 and draw.random() < 0.5:
        x = x.contiguous(memory_format=_CHANNELS_LAST[spatial])
    elif draw.random() < 0.3:
        x = torch.randn(batch, channels, *sizes[:-1], 2 * sizes[-1], **make)[..., ::2]
    weight = torch.randn(outputs, channels // groups, *kernel, **make)
    bias = torch.randn(outputs, **make) if draw.random() < 0.7 else None
    if batch and draw.random() < 0.1:
        x = x[0]
    for tensor in (x, weight, bias):
        if tensor is not None:
            tensor.requires_grad_(draw.random() < 0.9)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    shapes = f"{dtype} {tuple(x.shape)} {x.stride()} * {tuple(weight.shape)}"
    return Case(x, weight, bias, arguments, f"{shapes} {arguments}")


def check_case(case: Case, output: Tensor) -> None:
    """Compare an output and its gradients with torch's in float64.

    The gradient of ReLU is that of the signs which the output has: where rounding has changed a
    sign, no other gradient would fit.
    """
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in case.tensors]
    convolved = case.convolve(exact)
    _compare(output, convolved.relu(), case.shapes)
    assert output.dtype == case.x.dtype
    if not output.requires_grad:
        assert not convolved.requires_grad
        return
    grad = torch.randn_like(output)
    wanted = [t for t in case.tensors if t.requires_grad]
    found = torch.autograd.grad(output, wanted, grad)
    exact_grad = torch.where(output > 0, grad, 0).double()
    references = torch.autograd.grad(convolved, [t for t in exact if t.requires_grad], exact_grad)
    # Torch itself adds some gradients up in float16.
    plain_grad = torch.where(output > 0, grad, 0)
    plain = torch.autograd.grad(case.convolve(case.tensors), wanted, plain_grad)
    for i, (gradient, tensor) in enumerate(zip(found, wanted, strict=True)):
        assert gradient.shape == tensor.shape
        assert gradient.dtype == tensor.dtype
        _compare(gradient, references[i], case.shapes, plain[i])


def _compare(found: Tensor, exact: Tensor, shapes: str, plain: Tensor | None = None) -> None:
    """Check the error; it may be that of ``plain``, which torch has computed in the same dtype."""
    assert found.shape == exact.shape, shapes
    if found.numel() == 0:
        return
    error = (found.double() - exact).abs().max()
    if plain is not None and error <= (plain.double() - exact).abs().max():
        return
    # The result is rounded once; thousands of products are added up in float32 at least.
    eps = torch.finfo(found.dtype).eps
    factor = 4 * eps + 64 * min(eps, torch.finfo(torch.float32).eps)
    limit = factor * exact.abs().max().clamp(min=1)
    assert error <= limit, f"error {error}, at most {limit}: {shapes}"
