"""explain() says what a call does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vramkit.errors import ArgumentTypeError
from vramkit.nn import ConvReLU2d, explain


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
