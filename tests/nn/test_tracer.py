"""Pairs are fused only where every way to call the model uses them as pairs."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vramkit.nn import fuse_conv_relu, fusion_report
from vramkit.nn._tracer import ways_to_call


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()


class _Optional(_Model):
    def forward(self, x: Tensor, aux: Tensor | None = None) -> Tensor:
        y: Tensor = self.conv(x)
        return y if aux is None else self.relu(y) + aux


class _Required(_Model):
    def forward(self, x: Tensor, aux: Tensor | None) -> Tensor:
        y: Tensor = self.conv(x)
        return y if aux is None else self.relu(y) + aux


class _Keyword(_Model):
    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y if others.get("aux") is None else self.relu(y)


class _Positional(_Model):
    def forward(self, x: Tensor, *_others: Tensor, scale: float | None = None) -> Tensor:
        y: Tensor = self.conv(x)
        return y.tanh() if scale is None else self.relu(y) * scale


class _OneOfMany(_Model):
    def forward(self, x: Tensor, a: float | None = None, b: float | None = None) -> Tensor:
        y: Tensor = self.conv(x)
        return y if a is None and b is not None else self.relu(y)


class _Counts(_Model):
    def forward(self, x: Tensor, others: tuple[Tensor, ...] | None = None) -> Tensor:
        y: Tensor = self.conv(x)
        if self.training or others is None or len(others) == 0:
            return self.relu(y) + 1
        return y


class _Repeats(_Model):
    def forward(self, x: Tensor, times: int | None = None) -> Tensor:
        y: Tensor = self.conv(x)
        for _ in range(0 if self.training or times is None else times):
            y = y + 1
        return self.relu(y) + 1


class _AsksForATensor(_Model):
    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        return self.conv(x) if isinstance(x, Tensor) else self.relu(self.conv(x[0]))


class _HasAnInner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _AsksForATensor()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


class _List(_Model):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.conv]

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.layers[0](x))


class _WithoutGradient(_Model):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        with torch.no_grad():
            rectified = self.relu(y)
        return rectified * self.conv.bias.sum()


class _Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[:3](x)
        return y + self.layers[3:](y)


@pytest.mark.parametrize(
    ("make", "call", "reason"),
    [
        (_Optional, {}, "no ReLU follows, but the output of the model"),
        (_Keyword, {}, "no ReLU follows, but the output of the model"),
        (_Positional, {}, "no ReLU follows, but tanh"),
        (_OneOfMany, {"b": 1.0}, "no ReLU follows, but the output of the model"),
        (_Counts, {}, "the code of _Counts does not trace"),
        (_Repeats, {}, "the code of _Repeats does not trace"),
        (_Required, {"aux": None}, "no ReLU follows, but the output of the model"),
        (_AsksForATensor, {}, "the code of _AsksForATensor does not trace"),
        (_HasAnInner, {}, "the code of inner (_AsksForATensor) does not trace"),
        (_List, {}, "it is also kept outside the model's modules, such as in a list"),
        (_WithoutGradient, {}, "relu is called under torch.no_grad(), and it is not"),
        (_Slices, {}, "the output of layers.2 has 2 consumers"),
    ],
)
def test_what_some_calls_forbid(
    make: Callable[[], Any], call: dict[str, float | None], reason: str
) -> None:
    plain = make()
    model = fuse_conv_relu(copy.deepcopy(plain))
    x = torch.randn(2, 3, 5, 5)
    results = []
    for module in (plain, model):
        y = module(x, **call)
        y.sum().backward()
        results.append((y, [parameter.grad for parameter in module.parameters()]))
    torch.testing.assert_close(results[0], results[1])
    assert fusion_report(model).left[-1].reason.startswith(reason)


class _Branches(nn.Module):
    """Calls one of two pairs only in some ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.aux, self.aux_relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor, other: Tensor | None = None, scale: float | None = None) -> Tensor:
        if self.training and scale is None:
            raise ValueError("training needs a scale")
        y: Tensor = self.relu(self.conv(x))
        return y if other is None else y + self.aux_relu(self.aux(other))


def test_a_pair_may_be_called_in_some_ways_only() -> None:
    plain = _Branches().eval()
    model = fuse_conv_relu(copy.deepcopy(plain))
    assert [entry.name for entry in fusion_report(model).fused] == ["conv", "aux"]
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(model(x), plain(x))
    assert torch.equal(model(x, x), plain(x, x))


class _Fixed(_Model):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.conv(x)
        return self.relu(y)


def test_a_convolution_without_gradient_is_fused() -> None:
    plain = _Fixed()
    model = fuse_conv_relu(copy.deepcopy(plain))
    assert [entry.name for entry in fusion_report(model).fused] == ["conv"]
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    assert torch.equal(model(x), plain(x))
    assert not model(x).requires_grad


_STORE: dict[str, Tensor] = {}


class _Keeps(_Model):
    """Keeps what a function does with the convolution's output."""

    def __init__(self, keep: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.keep, self.features = keep, []

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.keep(self, y)
        return self.relu(y).mean((2, 3))


class _KeepsTheNormalized(_Model):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.norm(self.conv(x))
        y: Tensor = self.relu(self.kept)
        return y


@pytest.mark.parametrize(
    "keep",
    [
        lambda model, y: setattr(model, "kept", y),
        lambda model, y: setattr(model, "kept", {"a": [y]}),
        lambda model, y: setattr(model, "kept", lambda: y),
        lambda model, y: model.features.append(y),
        lambda _, y: _STORE.update(y=y),
    ],
    ids=["attribute", "nested", "closure", "list", "global"],
)
def test_an_output_that_is_kept_stays_as_it_is(keep: Callable[[Any, Tensor], object]) -> None:
    model = fuse_conv_relu(_Keeps(keep))
    [entry] = fusion_report(model).entries
    assert entry.status == "left"
    assert entry.reason == (
        "forward() keeps the output of conv beside what it returns, such as in an attribute, a "
        "list or a global variable"
    )
    assert model.features == []
    assert not hasattr(model, "kept")


def test_a_normalized_output_that_is_kept_stays_as_it_is() -> None:
    model = fuse_conv_relu(_KeepsTheNormalized().eval(), fold_batch_norm=True)
    assert type(model.norm) is nn.BatchNorm2d


def test_a_hook_may_keep_an_output() -> None:
    inner, kept = nn.Sequential(nn.Conv2d(3, 4, 3)), []
    inner.register_forward_hook(lambda _module, _arguments, output: kept.append(output))
    model = fuse_conv_relu(nn.Sequential(inner, nn.ReLU()))
    [entry] = fusion_report(model).left
    assert entry.reason.startswith("forward() keeps the output of 0.0 beside what it returns")


def test_a_cycle_of_references_keeps_nothing() -> None:
    def cycle(_: object, y: Tensor) -> None:
        values: list[Any] = [y]
        values.append(values)

    [entry] = fusion_report(_Keeps(cycle)).entries
    assert entry.status == "fusible"


class _Features(_Model):
    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        y = self.conv(x)
        rectified = self.relu(y)
        return (rectified, y) if return_features else rectified


class _FeaturesByKeyword(_Model):
    def forward(self, x: Tensor, *, features: bool = True) -> Any:
        y = self.conv(x)
        return self.relu(y) if features else (self.relu(y), y)


class _Rectifies(_Model):
    def forward(self, x: Tensor, mask: Tensor | None = None, rectify: bool = True) -> Tensor:
        y: Tensor = self.conv(x)
        if mask is not None:
            return self.relu(y) * mask
        return self.relu(y) if rectify else y


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_Features, "the output of conv has 2 consumers"),
        (_FeaturesByKeyword, "the output of conv has 2 consumers"),
        (_Rectifies, "no ReLU follows, but the output of the model"),
    ],
)
def test_a_flag_may_return_what_comes_before_relu(make: Callable[[], Any], reason: str) -> None:
    [entry] = fusion_report(make()).entries
    assert entry.status == "left"
    assert entry.reason.startswith(reason)


class _Flag(_Model):
    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        y = self.relu(self.conv(x))
        return (y.mean((2, 3)), y) if return_features else y.mean((2, 3))


class _FlagByKeyword(_Model):
    def forward(self, x: Tensor, *_others: Tensor, features: bool = False, **_more: Tensor) -> Any:
        y = self.relu(self.conv(x))
        return (y, y.mean()) if features else y


class _Times(_Model):
    def forward(self, x: Tensor, times: int = 2, *, scale: float = 1.5, mode: str = "add") -> Any:
        y = self.relu(self.conv(x))
        for _ in range(times):
            y = y + scale if mode == "add" and scale > 1 else y * scale
        return y


class _Exclusive(_Model):
    """Flags that exclude each other, and an argument that one of them needs."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, a: bool = False, b: bool = False
    ) -> Any:
        if a and (b or mask is None):
            raise ValueError("a needs a mask, and excludes b")
        y = self.relu(self.conv(x))
        return y * mask if a else (y, b)


@pytest.mark.parametrize("make", [_Flag, _FlagByKeyword, _Times, _Exclusive])
def test_flags_numbers_and_strings_do_not_prevent_fusing(make: Callable[[], Any]) -> None:
    plain = make()
    model = fuse_conv_relu(copy.deepcopy(plain))
    assert [entry.name for entry in fusion_report(model).fused] == ["conv"]
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(model(x), plain(x))


class _Many(nn.Module):
    def forward(
        self, a=None, b=None, c=1, d=False, e=True, f="", g=(), h=None, i=1.5, j=(), k=(), m=()
    ):
        return a, b, c, d, e, f, g, h, i, j, k, m


def test_the_number_of_ways_is_bounded() -> None:
    ways = list(ways_to_call(_Many()))
    assert ways[:3] == [frozenset("abghjkm"), frozenset("abdeghjkm"), frozenset()]
    assert ways[3:] == [frozenset(name) for name in "abdeghjk"]
    assert list(ways_to_call(_Flag())) == [frozenset(), frozenset(["return_features"])]
    assert list(ways_to_call(_Times())) == [frozenset()]


class _AsksInAHelper(_Model):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.note(y)
        z: Tensor = self.relu(y)
        return z + self.least

    def note(self, y: object) -> None:
        if torch.is_tensor(y):
            self.least = y.detach().min()


class _Wrapped(nn.Module):
    """Has the convolution and the ReLU in modules that may have hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y


def _lower(_module: object, _input: object, output: object) -> object:
    return output - 1 if isinstance(output, Tensor) else None


def _double(_module: object, gradients: Any, *_outputs: object) -> Any:
    return tuple(2 * gradient for gradient in gradients)


def _with(register: Callable[[_Wrapped], object]) -> Callable[[], _Wrapped]:
    def make() -> _Wrapped:
        model = _Wrapped()
        register(model)
        return model

    return make


def _features(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.conv(x)
    return y, self.relu(y)


def _replaced(forward: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = _HasAPair()
        model.forward = forward(model)  # type: ignore[method-assign]
        return model

    return make


class _HasAPair(_Model):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.conv(x))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_AsksInAHelper, "_AsksInAHelper.note asks whether a value is a tensor"),
        (_with(lambda m: m.body.register_forward_hook(_lower)), "no ReLU follows, but the output"),
        (_with(lambda m: m.body.register_full_backward_hook(_double)), "has backward hooks"),
        (_with(lambda m: m.body.register_full_backward_pre_hook(_double)), "has backward hooks"),
        (_with(lambda m: m.head.register_full_backward_hook(_double)), "has backward hooks"),
        (_replaced(lambda m: MethodType(_features, m)), "the output of conv has 2 consumers"),
        (_replaced(lambda m: lambda x: (m.conv(x), m.relu(m.conv(x)))), "it is used more than"),
        (_replaced(lambda m: functools.partial(_features, m)), "its forward was replaced by one"),
    ],
)
def test_what_else_would_notice(make: Callable[[], Any], reason: str) -> None:
    plain, model = make(), make()
    model.load_state_dict(plain.state_dict())
    fuse_conv_relu(model)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    results = []
    for module in (plain, model):
        y = module(x)
        sum(each.sum() for each in (y if isinstance(y, tuple) else (y,))).backward()
        results.append((y, [parameter.grad for parameter in module.parameters()]))
    torch.testing.assert_close(results[0], results[1])
    assert reason in fusion_report(model).left[0].reason


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_torch_may_ask_what_it_likes(use_reentrant: bool) -> None:
    class Checkpoints(_HasAPair):
        def forward(self, x: Tensor) -> Any:
            return checkpoint(super().forward, x, use_reentrant=use_reentrant)

    assert len(fusion_report(Checkpoints()).fusible) == 1


def test_a_forward_of_its_own_is_what_counts() -> None:
    model = _replaced(lambda m: lambda x: m.relu(m.conv(x)).tanh())()
    x = torch.randn(2, 3, 5, 5)
    wanted = model(x)
    assert len(fusion_report(fuse_conv_relu(model)).fused) == 1
    torch.testing.assert_close(model(x), wanted)


def test_a_sequence_with_a_forward_of_its_own_has_no_order() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model.forward = functools.partial(nn.Conv2d.__call__, model[0])  # type: ignore[assignment]
    assert fusion_report(fuse_conv_relu(model)).fused == ()


def test_a_compiled_convolution_stays() -> None:
    model = _HasAPair()
    model.conv.compile(backend="eager")
    [entry] = fusion_report(model).left
    assert entry.reason == "it is compiled itself; fuse before you call its compile()"


def test_other_threads_call_and_fuse_models_meanwhile() -> None:
    done, failures = threading.Event(), []
    served, x = fuse_conv_relu(_HasAPair()), torch.randn(1, 3, 5, 5)
    call, wanted = nn.Module.__call__, served(x)

    def serve() -> None:
        while not done.is_set():
            try:
                assert torch.equal(served(x), wanted)
            except Exception as err:  # noqa: BLE001 - whatever a trace may cause
                failures.append(err)

    server = threading.Thread(target=serve)
    server.start()
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(fuse_conv_relu, [_HasAPair() for _ in range(40)]))
    done.set()
    server.join()
    assert failures == []
    assert all(len(fusion_report(model).fused) == 1 for model in models)
    assert nn.Module.__call__ is call
