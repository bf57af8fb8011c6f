"""The modules are torch's convolutions with ReLU: arguments, parameters, state, copies."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vramkit.errors import InvalidArgumentError
from vramkit.nn import ConvReLU1d, ConvReLU2d, ConvReLU3d

KINDS = [(ConvReLU1d, nn.Conv1d), (ConvReLU2d, nn.Conv2d), (ConvReLU3d, nn.Conv3d)]


@pytest.mark.parametrize(("fused", "plain"), KINDS)
def test_arguments_are_torchs(fused: Any, plain: Any) -> None:
    found = list(inspect.signature(fused).parameters.values())
    wanted = list(inspect.signature(plain).parameters.values())
    assert [(p.name, p.default) for p in found[:-1]] == [(p.name, p.default) for p in wanted]
    assert found[-1].name == "save"
    assert found[-1].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": 2, "padding": 1, "groups": 2, "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular", "dtype": torch.float64},
    ],
)
@pytest.mark.parametrize(("fused", "plain"), KINDS)
def test_equals_the_two_modules(fused: Any, plain: Any, arguments: Any, save: str) -> None:
    torch.manual_seed(3)
    layer = fused(4, 6, 3, **arguments, save=save)
    torch.manual_seed(3)
    both = nn.Sequential(plain(4, 6, 3, **arguments), nn.ReLU())
    assert all(map(torch.equal, layer.parameters(), both.parameters()))
    size = (7,) * (layer.weight.ndim - 2)
    x = torch.randn(2, 4, *size, dtype=layer.weight.dtype, requires_grad=True)
    output, wanted = layer(x), both(x)
    assert torch.equal(output, wanted)
    grad = torch.randn_like(output)
    found = torch.autograd.grad(output, [x, *layer.parameters()], grad)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, [x, *both.parameters()], grad))


def test_the_state_goes_both_ways() -> None:
    layer, plain = ConvReLU2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain.weight, layer.weight)
    layer.load_state_dict(nn.Conv2d(3, 4, 3).state_dict())
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_equal_the_original(duplicate: Any) -> None:
    layer = ConvReLU2d(3, 4, 3, save="mask")
    again = duplicate(layer)
    x = torch.randn(1, 3, 5, 5)
    assert again.save == "mask"
    assert torch.equal(again(x), layer(x))


def test_saved_whole() -> None:
    file = io.BytesIO()
    torch.save(ConvReLU2d(3, 4, 3), file)
    file.seek(0)
    assert isinstance(torch.load(file, weights_only=False), ConvReLU2d)


def test_shown_with_its_arguments() -> None:
    assert repr(ConvReLU2d(3, 4, 3)) == "ConvReLU2d(3, 4, kernel_size=(3, 3), stride=(1, 1))"
    assert repr(ConvReLU1d(3, 4, 3, save="mask")).endswith(", stride=(1,), save='mask')")


def test_arguments_that_torch_refuses() -> None:
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        ConvReLU2d(3, 4, 3, groups=2)
    with pytest.raises(InvalidArgumentError, match="save must be 'output' or 'mask', got 'all'"):
        ConvReLU2d(3, 4, 3, save="all")  # type: ignore[arg-type]


def test_on_the_meta_device() -> None:
    layer = ConvReLU2d(3, 4, 3, device="meta")
    assert layer(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 4, 6, 6)


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(save: Any, use_reentrant: bool) -> None:
    torch.manual_seed(4)
    layers = nn.Sequential(ConvReLU2d(2, 3, 3, save=save), ConvReLU2d(3, 2, 3, save=save))
    x = torch.randn(2, 2, 8, 8, requires_grad=True)
    inputs = [x, *layers.parameters()]
    wanted = torch.autograd.grad(layers(x).sum(), inputs)
    checkpoint(layers, x, use_reentrant=use_reentrant).sum().backward()
    torch.testing.assert_close([t.grad for t in inputs], list(wanted))


@pytest.mark.parametrize("save", ["output", "mask"])
def test_exported_programs_use_torchs_operators_only(save: Any) -> None:
    layer = ConvReLU2d(2, 3, 3, save=save)
    x = torch.randn(2, 2, 8, 8)
    program = torch.export.export(layer, (x,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert all(target.startswith("aten.") for target in targets)
    torch.testing.assert_close(program.module()(x), layer(x))


def _saved_bytes(call: Any) -> tuple[Tensor, int]:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    return output, sum(sizes.values())


def test_a_mask_takes_a_bit_for_each_element() -> None:
    x = torch.randn(2, 8, 16, 16, dtype=torch.bfloat16, requires_grad=True)
    layer = ConvReLU2d(8, 8, 3, padding=1, dtype=torch.bfloat16)
    weights = layer.weight.nbytes
    _, kept = _saved_bytes(lambda: layer(x).mean((2, 3)))
    assert kept == weights + 2 * x.nbytes
    layer.save = "mask"
    _, kept = _saved_bytes(lambda: layer(x).mean((2, 3)))
    assert kept == weights + x.nbytes + x.nbytes // 16
