"""Bias and ReLU in one pass, as GPUs use it, checked on the CPU: gradients, formats, autocast."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vramkit.nn import _paths, _rectify, _selection
from vramkit.nn._paths import Path
from vramkit.nn.functional import conv_relu


@pytest.fixture(params=itertools.product((Path.BIAS, Path.MASK_BIAS), ("C++", "Python")))
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets conv_relu add the bias itself, as on a GPU, with nodes of either language."""
    path, language = request.param
    if language == "C++":
        assert _rectify.has_native_nodes()
    else:
        monkeypatch.setattr(_rectify, "has_native_nodes", lambda: False)
    monkeypatch.setattr("vramkit.nn.functional.torch_is_best", lambda *_: False)
    monkeypatch.setattr("vramkit.nn.functional.choose_path", lambda *_: path)
    return path


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias_has_gradient", [False, True])
def test_gradients_are_torchs(kernel: Path, bias_has_gradient: bool, channels_last: bool) -> None:
    torch.manual_seed(6)
    x = torch.randn(2, 4, 7, 7, requires_grad=True)
    form = torch.channels_last if channels_last else torch.contiguous_format
    weight = torch.randn(8, 4, 3, 3).contiguous(memory_format=form).requires_grad_()
    bias = torch.randn(8, requires_grad=bias_has_gradient)
    inputs = [x, weight, *([bias] if bias_has_gradient else [])]
    found, wanted = conv_relu(x, weight, bias), torch.relu(F.conv2d(x, weight, bias))
    torch.testing.assert_close(found, wanted)
    for grad in (torch.randn_like(wanted), torch.ones(()).expand_as(wanted)):
        torch.testing.assert_close(
            torch.autograd.grad(found, inputs, grad, retain_graph=True),
            torch.autograd.grad(wanted, inputs, grad, retain_graph=True),
            rtol=1e-5,
            atol=1e-5,
        )


def test_second_derivatives(kernel: Path) -> None:
    torch.manual_seed(1)
    make = {"dtype": torch.float64, "requires_grad": True}
    inputs = (torch.randn(1, 1, 4, **make), torch.randn(2, 1, 2, **make), torch.randn(2, **make))
    assert torch.autograd.gradcheck(conv_relu, inputs)
    assert torch.autograd.gradgradcheck(conv_relu, inputs, fast_mode=True)


def test_batched_gradients(kernel: Path) -> None:
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4, requires_grad=True)
    outputs = conv_relu(x, weight, bias), F.conv2d(x, weight, bias).relu()
    grads = torch.randn(5, *outputs[1].shape)
    found, wanted = (
        torch.autograd.grad(output, (x, bias), grads, is_grads_batched=True) for output in outputs
    )
    torch.testing.assert_close(found, wanted)


def test_autocast(kernel: Path) -> None:
    x, weight = torch.randn(2, 4, 7, 7), torch.randn(8, 4, 3, 3, requires_grad=True)
    bias = torch.randn(8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = conv_relu(x, weight, bias)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert bias.grad is not None
    assert bias.grad.dtype == torch.float32
    torch.testing.assert_close(bias.grad, (output > 0).sum((0, 2, 3)).float(), rtol=1e-2, atol=0)


class _OnGpu:
    """A tensor as choose_path sees it on a GPU."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    is_cpu = False
    is_cuda = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._tensor, name)


@pytest.mark.parametrize(
    ("bias", "kernels", "save", "choice", "path"),
    [
        (torch.ones(2), True, "output", "measured", Path.CHOSEN),
        (torch.ones(2), True, "output", "default", Path.BIAS),
        (torch.ones(2), True, "mask", "measured", Path.MASK_BIAS),
        (torch.ones(2), False, "output", "measured", Path.UNSUPPORTED),
        (torch.ones(2), False, "mask", "measured", Path.UNSUPPORTED),
        (torch.ones(3), True, "output", "measured", Path.UNSUPPORTED),
        (torch.ones(2).half(), True, "output", "measured", Path.UNSUPPORTED),
        (None, True, "output", "measured", Path.CHOSEN),
        (None, True, "output", "default", Path.NO_BIAS),
        (None, True, "mask", "measured", Path.MASK),
    ],
)
def test_paths_on_a_gpu(
    bias: Tensor | None,
    kernels: bool,
    save: _paths.Save,
    choice: _selection.Mode,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_selection._State, "mode", choice)
    monkeypatch.setattr(_paths, "is_plain", lambda _: True)
    monkeypatch.setattr(_paths, "has_kernels", lambda _: kernels)
    x, weight = _OnGpu(torch.ones(1, 1, 4, 4)), torch.ones(2, 1, 3, 3, requires_grad=True)
    assert _paths.choose_path(x, weight, bias, 1, 0, 1, 1, save) is path  # type: ignore[arg-type]
