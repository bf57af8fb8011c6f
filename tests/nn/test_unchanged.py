"""A report leaves a model as it was, also where others hold parts of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from vramkit.nn import fuse_conv_relu, fusion_report

# torch's own, at the creation of a lazy module.
pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")


class _LazyScale(LazyModuleMixin, nn.Module):
    """A lazy module of the user's, whose code is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = UninitializedParameter()

    def initialize_parameters(self, x: Tensor) -> None:
        self.scale.materialize((x.shape[1], 1, 1))
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _LazyNorm(nn.LazyBatchNorm2d):
    """A subclass of the user's; only torch's class knows what it becomes."""


def _head() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)]


_FIRST = "has no sizes yet; call the model once first"
_FUSIBLE = "save='mask', as the operations that follow keep nothing of the output"
_NORM = (
    "batch normalization 1 comes before the ReLU; fold_batch_norm=True folds it in evaluation mode"
)


def _three(second: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), second, nn.ReLU())


@pytest.mark.parametrize(
    ("make", "before", "after"),
    [
        (
            lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), *_head()),
            f"LazyConv2d {_FIRST}",
            _FUSIBLE,
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *_head()), _FUSIBLE, _FUSIBLE),
        (
            lambda: _three(nn.LazyBatchNorm2d()),
            f"1 (LazyBatchNorm2d) follows, which {_FIRST}",
            _NORM,
        ),
        (lambda: _three(_LazyNorm()), f"1 (_LazyNorm) follows, which {_FIRST}", _NORM),
        (
            lambda: _three(_LazyScale()),
            f"1 (_LazyScale) follows, which {_FIRST}",
            "no ReLU follows, but mul",
        ),
    ],
    ids=["convolution", "head", "normalization", "subclass", "own"],
)
@pytest.mark.parametrize("look", [fusion_report, fuse_conv_relu])
def test_lazy_modules(
    make: Callable[[], nn.Module],
    before: str,
    after: str,
    look: Callable[[nn.Module], object],
) -> None:
    model, x = make(), torch.randn(2, 3, 8, 8)
    assert fusion_report(model).entries[0].reason == before
    look(model)
    assert torch.equal(model(x), model(x))
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._load_state_dict_pre_hooks
    if not fusion_report(model).fused:
        assert fusion_report(model).entries[0].reason == after


class _Inner(nn.Module):
    """Its convolution is found only in the graph, which its lazy module does not allow yet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.scale = nn.Conv2d(3, 4, 3), nn.ReLU(), _LazyScale()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scale(self.relu(self.conv(x)))
        return y


def test_code_that_creates_parameters_is_not_run() -> None:
    model, x = nn.Sequential(_Inner()), torch.randn(2, 3, 8, 8)
    [entry] = fusion_report(model).entries
    assert entry.status == "left"
    assert entry.reason == (
        "0 (_Inner) is not traced, because scale (_LazyScale) has no sizes yet; call the model "
        "once first"
    )
    assert torch.equal(model(x), model(x))
    assert [entry.name for entry in fusion_report(fuse_conv_relu(model)).fused] == ["0.conv"]


def test_handles_still_remove_their_hooks() -> None:
    model, calls = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), []
    handle = model[2].register_forward_hook(lambda *_: calls.append(1))
    fuse_conv_relu(model)
    handle.remove()
    model(torch.randn(1, 3, 8, 8))
    assert calls == []


class _Frozen(dict[str, int]):
    """Settings that nobody may change."""

    def _refuse(self, *_: object) -> None:
        raise TypeError("frozen")

    __setitem__ = update = clear = _refuse  # type: ignore[assignment]


class _Records(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.settings = nn.Conv2d(3, 4, 3), nn.ReLU(), _Frozen(a=1)
        self.shapes, self.by_name, self.seen = [3], {"a": 3, "b": 4}, {3}

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(4)
        self.by_name["a"] = self.by_name.pop("b")
        self.seen.add(4)
        self.last = 1
        y: Tensor = self.relu(self.conv(x))
        return y


def test_containers_stay_the_same_objects() -> None:
    model = _Records()
    shapes, by_name, seen = model.shapes, model.by_name, model.seen
    assert len(fusion_report(model).fusible) == 1
    assert model.shapes is shapes
    assert model.by_name is by_name
    assert model.seen is seen
    assert (shapes, list(by_name.items()), seen) == ([3], [("a", 3), ("b", 4)], {3})
    assert model.settings == {"a": 1}
    assert not hasattr(model, "last")
