"""explain() says what a call does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vramkit.errors import ArgumentTypeError
from vramkit.nn import ConvReLU1d, ConvReLU2d, explain


def test_training() -> None:
    layer = ConvReLU2d(3, 4, 3, padding=1, padding_mode="reflect")
    text = str(explain(layer, torch.randn(1, 3, 8, 8)))
    assert text == (
        "forward:  PyTorch's convolution, then an in-place ReLU\n"
        "backward: PyTorch's gradients of ReLU and convolution\n"
        "saved:    the output, which the next operation may share\n"
        "because:  a gradient is needed: "
        "on the CPU no fused forward is faster than an in-place ReLU"
    )


def test_a_mask() -> None:
    found = explain(ConvReLU2d(3, 4, 3, save="mask"), torch.randn(1, 3, 8, 8))
    assert found.forward == "PyTorch's convolution, then one vramkit pass for ReLU and mask"
    assert found.saved == "one bit an element"
    assert found.backward is not None
    assert found.backward.startswith("one vramkit pass for the gradient of ReLU")


def test_inference() -> None:
    layer = ConvReLU2d(4, 16, 3)
    with torch.no_grad():
        large = explain(layer, torch.randn(2, 4, 140, 140))
        small = explain(layer, torch.randn(2, 4, 14, 14))
    assert large.forward == "oneDNN's convolution with a fused ReLU"
    assert (large.backward, large.saved) == (None, None)
    assert small.reason == "the output has fewer than 524288 elements, too few for oneDNN to pay"
    assert str(small).splitlines()[1:3] == ["backward: not needed", "saved:    nothing"]


def test_other_modules_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"takes a ConvReLU module, got Conv2d; fuse_conv"):
        explain(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    with pytest.raises(ArgumentTypeError, match=r"takes an input tensor, got list"):
        explain(ConvReLU2d(3, 4, 3), [1.0])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (ConvReLU2d(3, 4, 3), torch.ones(1, 5, 8, 8)),
        (ConvReLU2d(3, 4, 3, padding="same", save="mask"), torch.ones(5, 8, 8)),
        (ConvReLU2d(3, 4, 3), torch.ones(1, 3, 2, 2)),
        (ConvReLU2d(3, 4, 3), torch.ones(3, 8)),
        (ConvReLU2d(3, 4, 3), torch.ones(1, 3, 8, 8).double()),
        (ConvReLU2d(3, 4, 3, bias=False).double(), torch.ones(1, 3, 8, 8)),
        (ConvReLU2d(3, 4, 3, device="meta"), torch.ones(1, 5, 8, 8)),
        (ConvReLU2d(3, 4, 3, device="meta"), torch.ones(1, 3, 8, 8, device="meta").bfloat16()),
        (ConvReLU2d(3, 4, 3, padding=1, padding_mode="reflect"), torch.ones(1, 3, 1, 8)),
        (ConvReLU1d(4, 4, 3, groups=2), torch.ones(1, 2, 8)),
    ],
)
def test_it_raises_what_the_call_raises(layer: nn.Module, x: Tensor, autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with pytest.raises((RuntimeError, NotImplementedError)) as expected:
            layer(x)
        with pytest.raises(type(expected.value)) as found:
            explain(layer, x)
    # Autocast's dtypes have other names where there is no data.
    assert str(found.value) == str(expected.value) or (autocast and "type" in str(found.value))


def test_it_leaves_nothing_behind() -> None:
    layer, x = ConvReLU2d(3, 4, 3), torch.ones(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        explain(layer, x)
        with torch.no_grad():
            explain(layer, x)
        output = layer(x)
    output.sum().backward()
    assert type(output) is Tensor
    assert output.dtype == torch.bfloat16
    assert layer.weight.grad is not None


def test_tensors_without_data_and_subclasses() -> None:
    layer = ConvReLU2d(3, 4, 3, device="meta")
    assert explain(layer, torch.ones(1, 3, 8, 8, device="meta")).saved is not None
    with torch._subclasses.FakeTensorMode():
        fake, x = ConvReLU2d(3, 4, 3), torch.ones(1, 3, 8, 8)
        assert explain(fake, x).reason.startswith("an argument is a tensor subclass")
    with torch.inference_mode():
        assert explain(ConvReLU2d(3, 4, 3), torch.ones(1, 3, 8, 8)).backward is None
