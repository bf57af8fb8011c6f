"""Convolution and ReLU on the GPU: the same results, one pass over the output, CUDA graphs."""

import random

import pytest
import torch
from helpers.convolutions import check_case, random_case
from helpers.seeds import stress_seed
from torch import nn
from torch.nn.functional import conv2d

from vramkit.nn import ConvReLU2d, explain, fuse_conv_relu, set_kernel_choice
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
