"""conv_relu equals torch's convolution and ReLU for every kind of call."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.convolutions import check_case, random_case
from helpers.seeds import stress_seed
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from vramkit.errors import InvalidArgumentError
from vramkit.nn import _paths
from vramkit.nn._operators import format_of
from vramkit.nn._paths import Path, Save, choose_path
from vramkit.nn.functional import conv_relu

# torch's own: about padding="same", and about torch.jit, which torch itself uses.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
]

SAVES: tuple[Save, Save] = ("output", "mask")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def path_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: _paths.Sizes = 1,
    padding: _paths.Sizes | str = 0,
    groups: int = 1,
    save: Save = "output",
) -> Path:
    return choose_path(x, weight, bias, stride, padding, 1, groups, save)


@pytest.fixture
def onednn_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_paths, "ONEDNN_MIN_ELEMENTS", 0)
    monkeypatch.setattr(_paths, "ONEDNN_MIN_GROWTH", 0)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_convolutions_equal_float64(dtype: torch.dtype, save: Save) -> None:
    seed = stress_seed()
    torch.manual_seed(seed % 2**63)
    draw = random.Random(seed)
    for _ in range(40):
        case = random_case(draw, "cpu", dtype)
        output = conv_relu(case.x, case.weight, case.bias, **case.arguments, save=save)
        check_case(case, output)


@pytest.mark.usefixtures("onednn_always")
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_inferences_equal_float64(dtype: torch.dtype) -> None:
    seed = stress_seed()
    torch.manual_seed(seed % 2**63)
    draw = random.Random(seed)
    with torch.no_grad():
        for _ in range(40):
            case = random_case(draw, "cpu", dtype)
            output = conv_relu(case.x, case.weight, case.bias, **case.arguments)
            plain = torch.relu(case.convolve(case.tensors))
            assert format_of(output) == format_of(plain), case.shapes
            check_case(case, output)


def test_large_inferences_use_onednn() -> None:
    x, weight, bias = torch.randn(2, 8, 130, 130), torch.randn(32, 8, 3, 3), torch.randn(32)
    assert path_of(x, weight, bias) is Path.ONEDNN
    assert path_of(x, weight[:16], bias[:16]) is Path.GROWTH
    assert path_of(x, weight, bias.double()) is Path.BACKEND
    assert path_of(x.to_sparse(), weight, bias) is Path.BACKEND
    assert path_of(x.double(), weight.double(), bias.double()) is Path.BACKEND
    assert path_of(x, weight, bias, padding="same") is Path.BACKEND
    assert path_of(x, weight, bias, stride=2) is Path.SMALL
    assert path_of(x.repeat(4, 1, 1, 1), weight, bias, stride=2) is Path.GROWTH
    assert path_of(x, weight.requires_grad_(), bias) is Path.TRAINING
    with torch.no_grad(), torch.autocast("cpu"):
        assert path_of(x, weight, bias) is Path.AUTOCAST


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("save", SAVES)
def test_the_memory_format_is_kept(save: Save, channels_last: bool) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=form)
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)
    assert conv_relu(x, weight, save=save).is_contiguous(memory_format=form)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("onednn_always")
def test_large_inferences_keep_nan(dtype: torch.dtype, index: int) -> None:
    tensors = [torch.randn(shape, dtype=dtype) for shape in ((2, 4, 9, 9), (16, 4, 3, 3), (16,))]
    for value in (float("nan"), float("inf"), -float("inf")):
        given = [t.clone() for t in tensors]
        given[index].view(-1)[0] = value
        assert path_of(*given) is Path.ONEDNN
        torch.testing.assert_close(
            conv_relu(*given), F.conv2d(*given).relu(), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("save", SAVES)
def test_sizes_that_are_no_integers_are_torchs(save: Save) -> None:
    x, weight = torch.randn(2, 8, 130, 130), torch.randn(32, 8, 3, 3)
    for stride in (np.int64(1), (np.int64(1), np.int64(2)), torch.tensor(2), [1, 2], (2,)):
        given: Any = stride
        output = conv_relu(x, weight, stride=given, save=save)
        assert torch.equal(output, F.conv2d(x, weight, stride=given).relu())
    wrong: list[Any] = [1.5, None, True, (1, 1, 1), 0]
    for stride in wrong:
        with pytest.raises((TypeError, RuntimeError)) as plain:
            F.conv2d(x, weight, None, stride)
        with pytest.raises(plain.type) as found:
            conv_relu(x, weight, None, stride, save=save)
        # The text of a TypeError lists the types of all arguments.
        assert plain.type is TypeError or str(found.value) == str(plain.value)


@pytest.mark.parametrize("save", SAVES)
def test_batched_gradients(save: Save) -> None:
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 6, 6).contiguous(memory_format=form).requires_grad_()
        weight = torch.randn(4, 3, 3, 3)
        outputs = conv_relu(x, weight, save=save), F.conv2d(x, weight).relu()
        grads = torch.randn(5, *outputs[1].shape)
        found, wanted = (
            torch.autograd.grad(output, x, grads, is_grads_batched=True)[0] for output in outputs
        )
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("save", SAVES)
def test_selective_checkpointing(save: Save) -> None:
    """What is kept must not be overwritten."""
    kept = [torch.ops.aten.convolution.default]
    contexts = functools.partial(create_selective_checkpoint_contexts, kept)
    x, weight = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3)
    output = checkpoint(conv_relu, x, weight, save=save, use_reentrant=False, context_fn=contexts)
    [found] = torch.autograd.grad(output.square().sum(), x)
    [wanted] = torch.autograd.grad(F.conv2d(x, weight).relu().square().sum(), x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("onednn_always")
@pytest.mark.parametrize("save", SAVES)
def test_modes_and_tracers_see_torchs_operators(save: Save) -> None:
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(16, 3, 3, 3)

    def run(x: Tensor) -> Tensor:
        return conv_relu(x, weight, save=save)

    with FlopCounterMode(display=False) as counter:
        run(x)
    assert counter.get_total_flops() == 2 * 2 * 16 * 4 * 4 * 3 * 3 * 3
    called = {str(node.target) for node in make_fx(run)(x).graph.nodes if node.op[:4] == "call"}
    assert called == {"aten.convolution.default", "aten.relu.default"}
    traced = torch.jit.trace(run, x)
    assert torch.equal(traced(x), F.conv2d(x, weight).relu())
    assert "mkldnn" not in str(traced.graph)


@pytest.mark.parametrize("save", SAVES)
def test_nan_and_infinities_are_torchs(save: Save) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1.0, -1.0])
    x = x.reshape(1, 1, -1).requires_grad_()
    weight = torch.ones(1, 1, 1)
    output = conv_relu(x, weight, save=save)
    plain = torch.relu(F.conv1d(x, weight))
    assert torch.equal(output.isnan(), plain.isnan())
    assert torch.equal(output.nan_to_num(), plain.nan_to_num())
    [found] = torch.autograd.grad(output.sum(), x)
    [wanted] = torch.autograd.grad(plain.sum(), x)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("save", SAVES)
def test_second_derivatives(save: Save) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def call(*tensors: Tensor) -> Tensor:
        return conv_relu(*tensors, padding=1, save=save)

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_torchs(save: Save, dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)
    with torch.autocast("cpu", dtype):
        output = conv_relu(x, weight, bias, save=save)
        plain = torch.relu(F.conv2d(x, weight, bias))
    assert output.dtype == dtype
    assert torch.equal(output, plain)
    grad = torch.randn_like(output)
    for found, wanted in zip(
        torch.autograd.grad(output, (weight, bias), grad),
        torch.autograd.grad(plain, (weight, bias), grad),
        strict=True,
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("save", SAVES)
def test_an_output_kept_as_a_mask_may_be_overwritten(save: Save) -> None:
    weight = torch.ones(1, 1, 1, requires_grad=True)
    output = conv_relu(torch.ones(1, 1, 4), weight, save=save)
    output += 1
    if save == "output":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
    else:
        output.sum().backward()
        assert weight.grad is not None
        assert weight.grad.item() == 4


@pytest.mark.parametrize("save", SAVES)
def test_transforms_of_torch_func(save: Save) -> None:
    x, weight = torch.randn(3, 2, 4, 6, 6), torch.randn(3, 5, 4, 3, 3)

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return conv_relu(x, weight, save=save)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return torch.relu(F.conv2d(x, weight))

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return call(x, weight).sum()

    torch.testing.assert_close(torch.vmap(call)(x, weight), torch.vmap(plain)(x, weight))
    found = torch.vmap(torch.func.grad(loss))(weight, x)
    for row in range(3):
        one = weight[row].clone().requires_grad_()
        [wanted] = torch.autograd.grad(plain(x[row], one).sum(), one)
        torch.testing.assert_close(found[row], wanted)


@pytest.mark.usefixtures("onednn_always")
@pytest.mark.parametrize("save", SAVES)
def test_forward_mode(save: Save) -> None:
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(conv_relu(dual, weight, save=save)).tangent
    assert tangent is not None
    wanted = torch.where(F.conv2d(x, weight) > 0, F.conv2d(torch.ones_like(x), weight), 0)
    torch.testing.assert_close(tangent, wanted)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        (torch.ones(1, 2, 5, 5), torch.ones(1, 3, 3, 3), None),
        (torch.ones(1, 2, 2, 2), torch.ones(1, 2, 3, 3), None),
        (torch.ones(1, 2, 5, 5), torch.ones(1, 2, 3, 3).double(), None),
        (torch.ones(1, 2, 5, 5), torch.ones(1, 2, 3, 3), torch.ones(2)),
        (torch.ones(1, 2, 5, 5), torch.ones(1, 2), None),
        (torch.ones(5, 5), torch.ones(1, 2, 3, 3), None),
        (torch.ones(1, 2, 5, 5, dtype=torch.bool), torch.ones(1, 2, 3, 3).bool(), None),
        (torch.ones(1, 2, 5, 5).cfloat(), torch.ones(1, 2, 3, 3).cfloat(), None),
    ],
    ids=["channels", "too-small", "dtypes", "bias", "weight", "input", "bool", "complex"],
)
def test_errors_are_torchs(x: Tensor, weight: Tensor, bias: Tensor | None, save: Save) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)) as wanted, _no_warnings():
        torch.relu_(F.conv2d(x, weight, bias))
    with pytest.raises(type(wanted.value)) as found, _no_warnings():
        conv_relu(x, weight, bias, save=save)
    assert str(found.value).splitlines()[0] == str(wanted.value).splitlines()[0]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_no_tensor_is_torchs_error(save: Save, index: int, gradient: bool) -> None:
    arguments: list[Any] = [
        torch.ones(1, 2, 5, 5),
        torch.ones(3, 2, 3, 3, requires_grad=gradient),
        torch.ones(3),
    ]
    arguments[index] = arguments[index].detach().numpy()
    with pytest.raises(TypeError, match="invalid combination of arguments"):
        conv_relu(*arguments, save=save)


@pytest.mark.parametrize("save", SAVES)
def test_a_class_of_its_own_is_asked(save: Save) -> None:
    class Own:
        ndim = 4

        @classmethod
        def __torch_function__(cls, function: Any, *_: object) -> Any:
            return cls() if function is F.conv2d else (cls, function)

    found = conv_relu(Own(), torch.ones(3, 2, 3, 3), save=save)  # type: ignore[arg-type]
    assert found == (Own, torch.relu)


@pytest.mark.parametrize("save", SAVES)
def test_autocast_leaves_complex_numbers_to_torch(save: Save) -> None:
    x, weight = torch.ones(1, 2, 5, 5).cfloat(), torch.ones(1, 2, 3, 3).cfloat().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), _no_warnings():
        with pytest.raises(NotImplementedError) as wanted:
            F.relu(F.conv2d(x, weight))
        with pytest.raises(NotImplementedError) as found:
            conv_relu(x, weight, save=save)
    assert str(found.value) == str(wanted.value)


def _no_warnings() -> warnings.catch_warnings[None]:
    return warnings.catch_warnings(action="ignore")


def test_an_unknown_save_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="save must be 'output' or 'mask', got 'sign'"):
        conv_relu(torch.ones(1, 1, 1), torch.ones(1, 1, 1), save="sign")  # type: ignore[arg-type]


class _Subclass(Tensor):
    pass


def test_subclasses_get_torchs_operators() -> None:
    x = torch.ones(1, 1, 3).as_subclass(_Subclass)
    assert path_of(x, torch.ones(1, 1, 1)) is Path.SUBCLASS
    assert isinstance(conv_relu(x, torch.ones(1, 1, 1)), _Subclass)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_graph_breaks(save: Save, backend: str) -> None:
    x = torch.randn(2, 4, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 4, 3, 3, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)

    def call(*tensors: Tensor) -> Tensor:
        return conv_relu(*tensors, padding=1, save=save).mean((2, 3))

    compiled = torch.compile(call, fullgraph=True, backend=backend)
    output, plain = compiled(x, weight, bias), call(x, weight, bias)
    torch.testing.assert_close(output, plain, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(output)
    found = torch.autograd.grad(output, (x, weight, bias), grad)
    wanted = torch.autograd.grad(plain, (x, weight, bias), grad)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_graph_keeps_the_mask() -> None:
    x, weight = torch.randn(2, 4, 32, 32), torch.randn(16, 4, 3, 3, requires_grad=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return conv_relu(x, weight, save="mask").mean()

    elements = 2 * 16 * 30 * 30
    output = call(x, weight)
    saved = output.grad_fn.saved_tensors
    assert [t.nbytes for t in saved if t.dtype == torch.uint8] == [elements // 8]
    assert all(tensor.nbytes < 4 * elements for tensor in saved)
