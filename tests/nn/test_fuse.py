"""fuse_conv_relu changes what it may, leaves what others would notice, and says why."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, spectral_norm

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.nn import ConvReLU2d, FusionEntry, fuse_conv_relu, fusion_report
from vramkit.nn._modules import ConvReLUModule

# torch's own, which torch itself raises when it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


def conv(inputs: int = 4, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def pair(inputs: int = 4, outputs: int = 4) -> list[nn.Module]:
    return [conv(inputs, outputs), nn.ReLU()]


def fused_names(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, ConvReLUModule)]


def entry_of(model: nn.Module, name: str) -> FusionEntry:
    [entry] = [entry for entry in fusion_report(model).entries if entry.name == name]
    return entry


class Block(nn.Module):
    """conv1-relu-conv2, and what a function makes of both."""

    def __init__(self, join: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2, self.relu = conv(), conv(), nn.ReLU()
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(), conv()
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Sequential(*pair(), *pair()), nn.Sequential(*pair())
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Sequential(*pair(8), conv())

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(torch.cat([self.up(self.middle(self.pool(skip))), skip], 1))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*pair(), nn.MaxPool2d(2))
        self.block = Residual()
        self.last, self.relu = conv(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.relu(self.last(self.block(x))) if x.sum() > 0 else x


def vgg() -> nn.Module:
    features = [*pair(), *pair(), nn.MaxPool2d(2), *pair(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(nn.Sequential(*features), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (vgg, ["0.0", "0.2", "0.5"]),
        (UNet, ["down.0", "down.2", "middle.0", "head.0"]),
        (Residual, ["conv1"]),
        (Untraceable, ["features.0", "block.conv1"]),
    ],
)
def test_networks_give_the_same_results(make: Callable[[], nn.Module], fused: list[str]) -> None:
    torch.manual_seed(7)
    plain = make()
    model = copy.deepcopy(plain)
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert fuse_conv_relu(model) is model
    assert fused_names(model) == fused
    assert [e.name for e in fusion_report(model).fused] == fused
    found = dict(model.named_parameters())
    assert all(found[name] is parameter for name, parameter in parameters.items())
    assert list(found) == list(parameters)
    assert list(model.state_dict()) == keys
    x = torch.randn(2, 4, 8, 8).abs()
    assert torch.equal(model(x), plain(x))
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    optimizer.step()
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(x), plain(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), plain(x))
    assert fused_names(fuse_conv_relu(model)) == fused


@pytest.mark.parametrize(
    ("join", "reason"),
    [
        (
            lambda m, x: (y := m.conv1(x)) + m.relu(y),
            "the output of conv1 has 2 consumers: relu (ReLU), add",
        ),
        (lambda m, x: m.relu(m.conv2(m.relu(m.conv1(x)))), "relu is used more than once"),
        (lambda m, x: m.relu(m.conv1(m.conv1(x))), "it is used more than once"),
        (lambda m, x: F.relu(m.conv1(x)), "its ReLU is a call in forward(), not a module"),
        (lambda m, x: m.conv1(x).relu_(), "its ReLU is a call in forward(), not a module"),
        (lambda m, x: m.conv1(x).tanh(), "no ReLU follows, but tanh"),
        (lambda m, x: m.conv1(x), "no ReLU follows, but the output of the model"),
        (lambda m, x: m.conv2(x), "it is not called"),
        (
            lambda m, x: m.relu(m.conv1(x)) if m.training else m.conv1(x).relu(),
            "its ReLU is a call in forward()",
        ),
        (
            lambda m, x: m.relu(m.conv1(x)) if m.training else m.relu(m.conv2(x)),
            "its output is used differently in training, in evaluation, or with other arguments",
        ),
    ],
)
def test_what_the_graph_forbids(join: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    model = Block(join)
    assert "conv1" not in fused_names(fuse_conv_relu(model))
    entry = entry_of(model, "conv1")
    assert entry.status == "left"
    assert entry.reason.startswith(reason)


class _Conv(nn.Conv2d):
    pass


def _renamed(model: nn.Module) -> None:
    model.register_module("again", model[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m[0].register_forward_hook(lambda *_: None), "it has hooks"),
        (lambda m: m[0].register_full_backward_hook(lambda *_: None), "it has hooks"),
        (lambda m: m[0].register_forward_pre_hook(lambda *_: None), "it has hooks"),
        (lambda m: m[1].register_forward_hook(lambda *_: None), "1 has hooks"),
        (lambda m: parametrizations.weight_norm(m[0]), "it is parametrized"),
        (lambda m: spectral_norm(m[0]), "it has hooks"),
        (lambda m: m.__setitem__(0, _Conv(4, 4, 3)), "_Conv is a subclass"),
        (lambda m: m.__setitem__(1, nn.ReLU6()), "no ReLU follows, but 1 (ReLU6)"),
        (lambda m: setattr(m[1], "forward", torch.sigmoid), "1 has a forward() of its own"),
        (lambda m: setattr(m[0], "_conv_forward", F.conv2d), "it has a _conv_forward() of its own"),
        (_renamed, "1 is used more than once"),
    ],
)
def test_what_the_modules_forbid(change: Callable[[Any], object], reason: str) -> None:
    model = nn.Sequential(*pair(), conv())
    change(model)
    assert fused_names(fuse_conv_relu(model)) == []
    assert entry_of(model, "0").reason.startswith(reason)


@pytest.mark.parametrize(
    ("after", "save"),
    [
        ([conv()], "output"),
        ([nn.MaxPool2d(2)], "output"),
        ([nn.AvgPool2d(2)], "output"),
        ([nn.AdaptiveAvgPool2d(2)], "output"),
        ([nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(4, 2)], "mask"),
        ([nn.Upsample(scale_factor=2)], "mask"),
        ([nn.Dropout(), conv()], "output"),
        ([nn.Flatten(), nn.Linear(256, 2)], "output"),
        ([nn.Identity(), nn.Upsample(scale_factor=2, mode="bilinear")], "mask"),
        ([], "output"),
    ],
)
def test_a_mask_is_kept_where_consumers_keep_nothing(after: list[nn.Module], save: str) -> None:
    model = fuse_conv_relu(nn.Sequential(*pair(), *copy.deepcopy(after)))
    assert model[0].save == save
    forced = nn.Sequential(*pair(), *after)
    assert fuse_conv_relu(forced, save="mask")[0].save == "mask"


def _two_branches(block: Any, x: Tensor) -> Tensor:
    y = block.relu(block.conv1(x))
    return block.conv2(y) + y


def test_the_consumers_of_a_sum() -> None:
    assert fuse_conv_relu(Block(lambda m, x: m.relu(m.conv1(x)) + x)).conv1.save == "mask"
    assert fuse_conv_relu(Block(lambda m, x: m.relu(m.conv1(x)) * x)).conv1.save == "output"
    assert fuse_conv_relu(Block(_two_branches)).conv1.save == "output"


def test_batch_norms_are_folded_on_request() -> None:
    torch.manual_seed(8)
    plain = nn.Sequential(
        *(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(conv(), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()),
        *(conv(), nn.BatchNorm2d(4)),
    )
    plain(torch.randn(8, 4, 8, 8))
    plain.eval()
    model = copy.deepcopy(plain)
    assert fused_names(fuse_conv_relu(model)) == []
    assert "fold_batch_norm=True folds it" in entry_of(model, "0").reason
    assert entry_of(model, "3").reason == "4 keeps no running statistics that could be folded"
    fuse_conv_relu(model, fold_batch_norm=True)
    assert fused_names(model) == ["0"]
    assert type(model[1]) is nn.Identity
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_batch_norms_are_not_folded_in_training() -> None:
    with pytest.raises(InvalidArgumentError, match=r"needs a model in evaluation mode.*eval\(\)"):
        fuse_conv_relu(nn.Sequential(*pair()), fold_batch_norm=True)


def test_folding_leaves_the_old_convolution_as_it_was() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
    model(torch.randn(8, 4, 8, 8))
    old, weight = model[0], model[0].weight
    values = weight.detach().clone()
    fuse_conv_relu(model.eval(), fold_batch_norm=True)
    assert old.weight is weight
    assert torch.equal(weight, values)
    assert not torch.equal(model[0].weight, values)


class _Locked(nn.Sequential):
    """Refuses one of the modules that are set."""

    def __init__(self, refused: str) -> None:
        super().__init__(conv(), nn.BatchNorm2d(4), nn.ReLU())
        self.__dict__["refused"] = refused

    def __setattr__(self, name: str, value: Any) -> None:
        if name == self.__dict__.get("refused"):
            raise AttributeError("locked")
        super().__setattr__(name, value)


@pytest.mark.parametrize("refused", ["0", "1", "2"])
def test_a_model_that_refuses_a_module_stays_as_it_was(refused: str) -> None:
    model = _Locked(refused).eval()
    modules = list(model)
    with pytest.raises(AttributeError, match="locked"):
        fuse_conv_relu(model, fold_batch_norm=True)
    assert all(one is other for one, other in zip(model, modules, strict=True))


def test_attributes_and_the_mode_are_kept() -> None:
    model = nn.Sequential(*pair()).eval()
    model[0].note = "mine"
    model[0].weight.requires_grad_(False)
    fuse_conv_relu(model)
    assert model[0].note == "mine"
    assert not model[0].training
    assert not model[1].training
    assert not model[0].weight.requires_grad


class _Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.seen = conv(), nn.ReLU(), []
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.last = x
        self.steps += 1
        return self.relu(self.conv(x)) * torch.rand(1) * random.random() * float(np.random.rand())


def test_looking_through_a_model_leaves_no_trace() -> None:
    model = _Remembers().eval()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    report = fusion_report(model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_equal(np.random.get_state(), states[2])
    assert model.steps.item() == 0
    assert [entry.name for entry in report.fusible] == ["conv"]
    assert model.seen == []
    assert not hasattr(model, "last")
    assert not any(module.training for module in model.modules())


def test_the_report_is_readable() -> None:
    model = nn.Sequential(*pair(), nn.Upsample(scale_factor=2), conv(), nn.Tanh())
    assert str(fusion_report(model)) == (
        "Conv+ReLU: 0 fused, 1 fusible, 1 left\n"
        "fusible 0 + 1: save='mask', as the operations that follow keep nothing of the output\n"
        "left    3: no ReLU follows, but 4 (Tanh)"
    )
    report = fusion_report(fuse_conv_relu(model))
    assert (
        str(report).splitlines()[1]
        == "fused   0: ConvReLU2d keeps one bit an element for ReLU's gradient"
    )
    assert [entry.save for entry in report.fused] == ["mask"]
    assert [entry.name for entry in report.left] == ["3"]


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match="'auto', 'output' or 'mask', got 'all'"):
        fuse_conv_relu(nn.Sequential(), save="all")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"must be an nn\.Module, got int"):
        fuse_conv_relu(3)  # type: ignore[type-var]
    with pytest.raises(ArgumentTypeError, match=r"call fuse_conv_relu before torch\.compile"):
        fusion_report(torch.compile(nn.Sequential(*pair())))


def test_a_fused_model_compiles_whole() -> None:
    torch._dynamo.reset()
    model = fuse_conv_relu(UNet())
    x = torch.randn(2, 4, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()


def test_wrapped_models_are_looked_into() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Sequential(*pair())

        def forward(self, *inputs: Any, **options: Any) -> Any:
            if len(inputs) + len(options) == 0:
                raise AssertionError
            return self.module(*inputs, **options)

    model = fuse_conv_relu(Wrapper())
    assert isinstance(model.module[0], ConvReLU2d)
