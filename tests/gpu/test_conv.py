"""Convolution and ReLU on the GPU: the same results, one pass over the output, CUDA graphs."""

import random

import pytest
import torch
from helpers.convolutions import check_case, random_case
from helpers.seeds import stress_seed
from torch import nn
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

from vramkit.nn import ConvReLU2d, explain, fuse_conv_relu, set_kernel_choice
from vramkit.nn._paths import choose_path
from vramkit.nn.functional import conv_relu

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    set_kernel_choice("default")
    yield
    set_kernel_choice("measured")


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_convolutions_equal_float64(dtype, save) -> None:
    seed = stress_seed()
    torch.manual_seed(seed % 2**63)
    draw = random.Random(seed)
    for _ in range(100):
        case = random_case(draw, "cuda", dtype)
        output = conv_relu(case.x, case.weight, case.bias, **case.arguments, save=save)
        check_case(case, output)


def test_one_pass_serves_bias_and_relu() -> None:
    layer = ConvReLU2d(8, 16, 3, padding=1, device="cuda", dtype=torch.bfloat16)
    layer.to(memory_format=torch.channels_last)
    x = torch.randn(4, 8, 32, 32, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    assert "one vramkit pass for bias and ReLU" in explain(layer, x).forward
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        layer(x).sum().backward()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    assert any("rectify_kernel" in name for name in names)
    assert any("row_kernel" in name for name in names)


@pytest.mark.parametrize("save", ["output", "mask"])
def test_captured_in_a_cuda_graph(save) -> None:
    layer = ConvReLU2d(8, 16, 3, padding=1, device="cuda", save=save)
    x, grad = torch.randn(4, 8, 16, 16, device="cuda"), torch.randn(4, 16, 16, 16, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            layer(x).backward(grad)
    stream.synchronize()
    layer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(x)
        found = torch.autograd.grad(output, list(layer.parameters()), grad)
    x.normal_()
    graph.replay()
    wanted = conv2d(x, layer.weight, layer.bias, padding=1).relu()
    torch.testing.assert_close(output, wanted)
    exact = torch.autograd.grad(wanted, list(layer.parameters()), grad)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gradient_of_the_bias_is_reproducible(channels_last) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    output = torch.randn(32, 48, 56, 56, device="cuda").relu().contiguous(memory_format=form)
    grad = torch.randn_like(output)
    first = torch.ops.vramkit.relu_backward(grad, output, True)[1]
    for _ in range(5):
        assert torch.equal(torch.ops.vramkit.relu_backward(grad, output, True)[1], first)
    exact = torch.where(output > 0, grad, 0).double().sum((0, 2, 3))
    torch.testing.assert_close(first.double(), exact, rtol=1e-4, atol=1e-3)


def test_a_fused_network_trains_alike_under_autocast() -> None:
    torch.manual_seed(9)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).cuda()
    x = torch.randn(8, 3, 24, 24, device="cuda")
    losses = []
    for model in (plain, fuse_conv_relu(nn.Sequential(*plain))):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(x).float().square().mean()
        losses.append(loss)
        model.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=2e-2)


def _layer(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """A layer that the named kernels can serve, in bfloat16 and channels-last, and its input."""
    made = {
        "depthwise": lambda: (ConvReLU2d(64, 64, 3, padding=1, groups=64), 64),
        "stem": lambda: (ConvReLU2d(3, 32, 3, stride=2, padding=1), 3),
        "dense": lambda: (ConvReLU2d(16, 32, 3, padding=1), 16),
    }
    layer, channels = made[kind]()
    layer.to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(4, channels, 32, 32, device="cuda", dtype=torch.bfloat16)
    return layer, x.contiguous(memory_format=torch.channels_last).requires_grad_()


def _check_call(layer: nn.Module, x: torch.Tensor, output: torch.Tensor) -> None:
    inputs = [x, *layer.parameters()]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    arguments = (layer.stride, layer.padding, layer.dilation, layer.groups)
    wanted = conv2d(*exact, *arguments).relu()
    torch.testing.assert_close(output.double(), wanted, rtol=2e-2, atol=2e-2)
    grad = torch.randn_like(output)
    # Where the output is rounded to zero or up from it, the gradients would differ.
    grad[(output > 0) != (wanted > 0)] = 0
    found = torch.autograd.grad(output, inputs, grad)
    for one, other in zip(found, torch.autograd.grad(wanted, exact, grad.double()), strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=3e-2, atol=2e-2 * scale)


@pytest.mark.parametrize("kind", ["depthwise", "stem", "dense"])
def test_calls_that_are_ready_compute_what_the_first_one_does(kind, monkeypatch) -> None:
    set_kernel_choice("measured")
    torch.manual_seed(4)
    layer, x = _layer(kind)
    decided = []
    monkeypatch.setattr(
        "vramkit.nn.functional.choose_path", lambda *a: decided.append(0) or choose_path(*a)
    )
    for _ in range(3):
        output = layer(x)
        assert "CppNode" in output.grad_fn.name()
        _check_call(layer, x, output)
    output = checkpoint(layer, x, use_reentrant=False)
    _check_call(layer, x, output)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), output)
    assert len(decided) == 1
    assert explain(layer, x).node == "C++"
    with torch.autocast("cuda", torch.float16):
        assert layer(x).dtype == layer(x).dtype == torch.float16
    assert len(decided) == 2


@pytest.mark.parametrize("kind", ["depthwise", "dense"])
def test_a_graph_captures_what_was_chosen(kind) -> None:
    set_kernel_choice("measured")
    torch.manual_seed(5)
    layer, x = _layer(kind)
    grad = torch.randn_like(layer(x))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            layer(x).backward(grad)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(x)
        found = torch.autograd.grad(output, list(layer.parameters()), grad)
    with torch.no_grad():
        x.normal_()
    graph.replay()
    wanted = layer(x)
    torch.testing.assert_close(output, wanted)
    exact = torch.autograd.grad(wanted, list(layer.parameters()), grad)
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)
