"""Chosen kernels on the GPU: exact for random shapes, in graphs, in deterministic mode."""

import random

import pytest
import torch
from helpers.seeds import stress_seed
from torch.nn.functional import conv2d

from vramkit.nn import ConvReLU2d, _fused, explain, set_kernel_choice
from vramkit.nn._candidates import FORWARD, Geometry, forward_names, gradient_names
from vramkit.nn._selection import Choice
from vramkit.nn.functional import conv_relu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def _exact_and_fresh(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    set_kernel_choice("measured")
    yield
    set_kernel_choice("measured")


def _case(draw: random.Random, dtype: torch.dtype):
    kind = draw.choice(("dense", "depthwise", "depthwise", "stem", "grouped", "grouped"))
    kernel = draw.choice((1, 3, 5, 7)) if kind != "grouped" or draw.random() < 0.2 else 3
    stride = 2 if kind == "stem" else draw.choice((1, 2))
    group = draw.choice((2, 4, 8, 16, 32))
    several = max(group, 8) * draw.randint(1, 96 // max(group, 8))
    channels = {"stem": 3, "dense": 24, "grouped": several}.get(kind, 8 * draw.randint(1, 12))
    groups = {"depthwise": channels, "grouped": channels // group}.get(kind, 1)
    whole = kind in ("depthwise", "grouped") and draw.random() < 0.9
    outputs = channels if whole else 8 * groups * draw.randint(1, 3)
    size = [kernel + draw.randint(0, 24) for _ in range(2)]
    x = torch.randn(draw.randint(1, 4), channels, *size, device="cuda").to(dtype)
    weight = torch.randn(outputs, channels // groups, kernel, kernel, device="cuda").to(dtype)
    bias = torch.randn(outputs, device="cuda").to(dtype) if draw.random() < 0.7 else None
    x, weight = (t.contiguous(memory_format=draw.choice(FORMS)) for t in (x, weight))
    padding = (draw.randint(0, kernel // 2), draw.randint(0, kernel // 2))
    return x, weight, bias, Geometry((stride, stride), padding, (1, 1), groups)


def _check(found: torch.Tensor, exact: torch.Tensor, text: str) -> None:
    eps = torch.finfo(found.dtype).eps
    limit = (4 * eps + 64 * min(eps, 2**-23)) * exact.abs().max().clamp(min=1)
    assert (found.double() - exact).abs().max() <= limit, text


def _node(draw: random.Random, name: str, output: torch.Tensor, arguments) -> torch.Tensor:
    """Compute the output with the node in Python or in C++, which may know its gradients or ask."""
    x, weight, bias, at = arguments
    if draw.random() < 0.3:
        return _fused.ConvReLUNode.apply(*arguments, name)
    call = _fused.call_of(Choice(name, {}), weight, at)
    assert isinstance(call, _fused._NativeCall), name
    if draw.random() < 0.7:
        known = gradient_names(output, x, weight, at)
        call.settle((draw.choice(known), draw.choice(known)))
    return call(x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_candidate_equals_float64(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = stress_seed()
    torch.manual_seed(seed % 2**63)
    draw = random.Random(seed)
    monkeypatch.setattr(_fused, "choose", lambda _, runs: Choice(draw.choice(list(runs())), {}))
    for _ in range(150):
        x, weight, bias, at = _case(draw, dtype)
        tensors = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
        wide = [t.detach().double().requires_grad_() for t in tensors]
        exact = conv2d(wide[0], wide[1], *(wide[2:] or [None]), *at)
        for name in forward_names(x, weight, at):
            text = f"{name} {dtype} {tuple(x.shape)} {x.stride()} {tuple(weight.shape)} {at}"
            try:
                output = FORWARD[name](x.detach(), weight.detach(), bias, at)
            except RuntimeError:
                assert name == "cudnn", text
                continue
            _check(output, exact.relu(), text)
            assert output.stride() == conv2d(x, weight, bias, *at).stride(), text
            node = _node(draw, name, output, (x, weight, bias, at))
            grad = torch.randn_like(node)
            signed = torch.where(node > 0, grad, 0).double()
            wanted = torch.autograd.grad(exact, wide, signed, retain_graph=True)
            for gradient, reference in zip(
                torch.autograd.grad(node, tensors, grad), wanted, strict=True
            ):
                _check(gradient, reference, text)


def _layer(save: str = "output") -> ConvReLU2d:
    layer = ConvReLU2d(32, 32, 3, padding=1, groups=32, save=save, device="cuda")
    return layer.to(torch.bfloat16)


def _input(size: int = 28) -> torch.Tensor:
    x = torch.randn(8, 32, size, size, device="cuda", dtype=torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last)


def test_a_choice_is_explained() -> None:
    layer, x = _layer(), _input()
    assert "the first call will measure" in explain(layer, x).forward
    layer(x)
    assert "depthwise0" in explain(layer, x).tried


@pytest.mark.parametrize("measured", [False, True])
def test_a_graph_uses_what_is_known_and_measures_nothing(measured) -> None:
    layer, x = _layer(), _input(30)
    grad = torch.randn_like(_input(30))
    parameters = list(layer.parameters())
    if measured:
        torch.autograd.grad(layer(x), parameters, grad)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(x)
        found = torch.autograd.grad(output, parameters, grad)
    x.normal_()
    graph.replay()
    wide = [t.detach().double().requires_grad_() for t in parameters]
    exact = conv2d(x.double(), *wide, padding=1, groups=32)
    _check(output, exact.relu(), "output")
    # Where the ReLU's input is nearly zero, rounding decides its sign.
    wanted = torch.autograd.grad(exact, wide, torch.where(output > 0, grad, 0).double())
    for gradient, reference in zip(found, wanted, strict=True):
        _check(gradient, reference, "gradient")


def test_deterministic_mode_and_default_mode_measure_nothing() -> None:
    layer, x = _layer(), _input(26)
    torch.use_deterministic_algorithms(True)
    try:
        layer(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert explain(layer, x).tried == ""
    set_kernel_choice("default")
    layer(x)
    assert "one vramkit pass for bias and ReLU" in explain(layer, x).forward


def test_autocast_and_second_derivatives() -> None:
    layer = ConvReLU2d(8, 8, 3, padding=1, groups=8, device="cuda")
    x = torch.randn(2, 8, 9, 9, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    x.requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    plain = conv2d(x, layer.weight, layer.bias, padding=1, groups=8).relu()
    (exact,) = torch.autograd.grad(plain.square().sum(), x, create_graph=True)
    found = torch.autograd.grad(first.sum(), layer.weight)
    wanted = torch.autograd.grad(exact.sum(), layer.weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_a_step_takes_no_more_memory_than_an_in_place_relu() -> None:
    layer, x = _layer(), _input(112).requires_grad_()

    def peak(call) -> int:
        for _ in range(3):
            call(x).sum().backward()
            x.grad = None
            layer.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call(x).sum().backward()
        return torch.cuda.max_memory_allocated()

    plain = peak(lambda x: conv2d(x, layer.weight, layer.bias, padding=1, groups=32).relu_())
    x.grad = None
    layer.zero_grad()
    # The weight gradient's partial sums take a few MiB.
    assert peak(layer) <= plain + (8 << 20)


def test_a_mask_still_works_beside_the_choice() -> None:
    x = _input().requires_grad_()
    conv_relu(x, *_layer("mask").parameters(), 1, 1, 1, 32, save="mask").sum().backward()
    assert x.grad is not None
