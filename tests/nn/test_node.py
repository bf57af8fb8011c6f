"""The nodes in C++ and in Python are alike: gradients, errors, hooks, and what a call looks up."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

import vramkit
from vramkit._build import BuildError
from vramkit.nn import ConvReLU2d, _fused, _node, _ready, _rectify, _selection, explain
from vramkit.nn import functional as vf
from vramkit.nn._candidates import Geometry
from vramkit.nn._paths import Path
from vramkit.nn._selection import READY, set_kernel_choice
from vramkit.nn.functional import conv_relu

AT = Geometry((1, 1), (1, 1), (1, 1), 8)


@pytest.fixture(params=["C++", "Python"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The language of the nodes that serve calls."""
    if request.param == "Python":
        monkeypatch.setattr(_fused, "plan_of", lambda *_: None)
        monkeypatch.setattr(_fused, "has_native_nodes", lambda: False)
        monkeypatch.setattr(_rectify, "has_native_nodes", lambda: False)
    else:
        assert _node.has_native_nodes()
    return request.param


class Decisions:
    """How often a call was decided, and how often its gradients were."""

    calls = gradients = 0


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decisions]:
    """CPU tensors go the way of CUDA tensors; the last candidate counts as the fastest."""
    counts = Decisions()

    def path(*_: object) -> Path:
        counts.calls += 1
        return Path.CHOSEN

    def choices(*arguments: Any, original: Any = _fused._gradient_choices) -> Any:
        counts.gradients += 1
        return original(*arguments)

    def fastest(runs: Any, _: object) -> _selection.Choice:
        for run in runs.values():
            run()
        return _selection.Choice(list(runs)[-1], dict.fromkeys(runs, 1.0))

    monkeypatch.setattr(vf, "torch_is_best", lambda *_: False)
    monkeypatch.setattr(vf, "choose_path", path)
    monkeypatch.setattr(_ready, "_can_be_ready", lambda *_: _selection.measures())
    monkeypatch.setattr(_fused, "_gradient_choices", choices)
    monkeypatch.setattr(_selection, "fastest", fastest)
    set_kernel_choice("measured")
    yield counts
    set_kernel_choice("measured")


def _tensors(
    *needs: bool, groups: int = 8, channels: int = 8, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    torch.manual_seed(3)
    x = torch.randn(2, channels, 9, 10).contiguous(memory_format=torch.channels_last)
    made = [x, torch.randn(8, channels // groups, 3, 3), torch.randn(8)]
    wanted = needs or (True,) * 3
    return [t.to(dtype).requires_grad_(n) for t, n in zip(made, wanted, strict=True)]


def _check_against_torch(
    tensors: list[Tensor], output: Tensor, *, stride: int = 1, groups: int = 8, tolerance: float
) -> None:
    wanted = conv2d(*tensors, stride, 1, groups=groups).relu()
    torch.testing.assert_close(output, wanted, rtol=tolerance, atol=tolerance)
    inputs = [t for t in tensors if t.requires_grad]
    grad = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(output, inputs, grad),
        torch.autograd.grad(wanted, inputs, grad),
        rtol=10 * tolerance,
        atol=10 * tolerance,
    )


@pytest.mark.parametrize(
    ("channels", "groups", "stride", "dtype", "names"),
    [
        (8, 8, 1, torch.float32, ("depthwise1", ["depthwise1", "depthwise1"])),
        (8, 8, 2, torch.bfloat16, ("grouped2", ["grouped2", "grouped2"])),
        (3, 1, 2, torch.bfloat16, ("stem1", ["", ""])),
        (8, 1, 1, torch.float64, ("torch+pass", ["torch", "torch"])),
    ],
)
def test_what_was_decided_once_is_looked_up(
    channels: int,
    groups: int,
    stride: int,
    dtype: torch.dtype,
    names: tuple[str, list[str]],
    node: str,
    on_gpu: Decisions,
) -> None:
    tolerance = 1e-5 if dtype != torch.bfloat16 else 2e-2
    for _ in range(4):
        tensors = _tensors(groups=groups, channels=channels, dtype=dtype)
        output = conv_relu(*tensors, stride, 1, 1, groups)
        _check_against_torch(tensors, output, stride=stride, groups=groups, tolerance=tolerance)
    assert on_gpu.calls == 1
    [ready] = READY.values()
    assert ready.name == names[0]
    if node == "C++":
        assert ready.gradients == names[1]
        assert on_gpu.gradients == (1 if all(names[1]) else 0)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_any_of_the_inputs_may_need_a_gradient(
    groups: int, bias: bool, node: str, on_gpu: Decisions
) -> None:
    for needs in ((1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)):
        tensors = _tensors(*map(bool, needs), groups=groups)
        arguments = tensors if bias else [*tensors[:2], None]
        if not any(t is not None and t.requires_grad for t in arguments):
            continue
        for _ in range(2):
            output = conv_relu(*arguments, 1, 1, 1, groups)
            wanted = conv2d(*arguments, 1, 1, 1, groups).relu()
            for result in (output, wanted):
                result.backward(torch.ones(()).expand_as(result))
                result.detach_()
            found = [t.grad for t in tensors]
            assert [g is not None for g in found] == [
                t.requires_grad and (bias or i < 2) for i, t in enumerate(tensors)
            ]
            fresh = conv2d(*arguments, 1, 1, 1, groups).relu()
            exact = torch.autograd.grad(
                fresh.sum(), [t for t in arguments if t is not None and t.requires_grad]
            )
            torch.testing.assert_close([g / 2 for g in found if g is not None], list(exact))
            for t in tensors:
                t.grad = None
    assert on_gpu.calls == 1


def test_without_gradients_nothing_is_recorded(node: str, on_gpu: Decisions) -> None:
    tensors = _tensors()
    with torch.no_grad():
        for _ in range(2):
            assert conv_relu(*tensors, 1, 1, 1, 8).grad_fn is None
    with torch.inference_mode():
        output = conv_relu(*tensors, 1, 1, 1, 8)
    assert output.is_inference()
    assert conv_relu(*tensors, 1, 1, 1, 8).grad_fn is not None
    assert on_gpu.calls == 1


@pytest.mark.parametrize("index", [0, 1])
def test_saved_tensors_must_not_be_overwritten(index: int, node: str, on_gpu: Decisions) -> None:
    tensors = _tensors()
    output = conv_relu(*tensors, 1, 1, 1, 8)
    with torch.no_grad():
        tensors[index].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    output = conv_relu(*tensors, 1, 1, 1, 8)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_graph_is_freed_unless_it_is_retained(node: str, on_gpu: Decisions) -> None:
    tensors = _tensors()
    output = conv_relu(*tensors, 1, 1, 1, 8).sum()
    first = torch.autograd.grad(output, tensors, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(output, tensors), first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.backward()


def test_hooks_of_saved_tensors_and_of_gradients(node: str, on_gpu: Decisions) -> None:
    tensors = _tensors()
    packed: list[Tensor] = []
    seen: list[str] = []
    with saved_tensors_hooks(lambda t: packed.append(t) or len(packed) - 1, lambda i: packed[i]):
        output = conv_relu(*tensors, 1, 1, 1, 8)
    assert [t.shape for t in packed] == [tensors[0].shape, tensors[1].shape, output.shape]
    assert output.grad_fn is not None
    output.register_hook(lambda _: seen.append("output"))
    output.grad_fn.register_prehook(lambda _: seen.append("before"))
    output.grad_fn.register_hook(lambda *_: seen.append("after"))
    _check_against_torch(tensors, output, tolerance=1e-5)
    assert seen == ["output", "before", "after"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
@pytest.mark.parametrize("save", ["output", "mask"])
def test_compiled_autograd(save: Any, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"output": Path.BIAS, "mask": Path.MASK_BIAS}
    monkeypatch.setattr(vf, "torch_is_best", lambda *_: False)
    monkeypatch.setattr(vf, "choose_path", lambda *_: paths[save])
    tensors = _tensors(groups=1)
    wanted = torch.autograd.grad(conv2d(*tensors, 1, 1).relu().sum(), tensors)
    call = _fused.call_of(_selection.Choice("torch+pass", {}), tensors[1], AT._replace(groups=1))
    for run in (call, functools.partial(conv_relu, padding=1, save=save)):
        with compiled_autograd._enable(torch.compile(backend="eager")):
            run(*tensors).sum().backward()
        torch.testing.assert_close([t.grad for t in tensors], list(wanted))
        for t in tensors:
            t.grad = None


def test_checkpointing(node: str, on_gpu: Decisions) -> None:
    tensors = _tensors()
    run = functools.partial(conv_relu, padding=1, groups=8)
    for reentrant in (False, True):
        output = checkpoint(run, *tensors, use_reentrant=reentrant)
        output.sum().backward()
        found = [t.grad for t in tensors]
        wanted = torch.autograd.grad(conv2d(*tensors, 1, 1, 1, 8).relu().sum(), tensors)
        torch.testing.assert_close(found, list(wanted), rtol=1e-4, atol=1e-4)
        for t in tensors:
            t.grad = None


def test_second_derivatives_and_batched_gradients(node: str, on_gpu: Decisions) -> None:
    tensors = _tensors(dtype=torch.float64)
    run = functools.partial(conv_relu, padding=1, groups=8)
    # What is chosen for gradients is not measured inside of vmap.
    for _ in range(2):
        assert torch.autograd.gradcheck(run, tensors, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda *given: run(*given).square(), tensors, fast_mode=True
    )


def test_deterministic_modes_leave_the_choice(node: str, on_gpu: Decisions) -> None:
    tensors = _tensors()
    outputs = [conv_relu(*tensors, 1, 1, 1, 8) for _ in range(2)]
    outputs[0].sum().backward()
    assert (on_gpu.calls, len(READY)) == (1, 1)
    torch.use_deterministic_algorithms(True)
    try:
        ops: list[str] = []
        with torch.profiler.profile() as profile:
            _check_against_torch(tensors, outputs[1], tolerance=1e-5)
            conv_relu(*tensors, 1, 1, 1, 8)
        ops = [event.name for event in profile.events()]
    finally:
        torch.use_deterministic_algorithms(False)
    assert on_gpu.calls == 2
    assert "vramkit::depthwise_conv_relu" not in ops
    assert "vramkit::depthwise_grad_weight" not in ops
    assert "aten::convolution_backward" in ops


def test_a_new_choice_and_new_settings_are_decided_anew(on_gpu: Decisions) -> None:
    tensors = _tensors()
    for _ in range(2):
        conv_relu(*tensors, 1, 1, 1, 8)
    assert on_gpu.calls == 1
    set_kernel_choice("measured")
    conv_relu(*tensors, [1, 1], 1, 1, 8)
    assert on_gpu.calls == 2
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not before
    try:
        conv_relu(*tensors, [1, 1], 1, 1, 8)
    finally:
        torch.backends.cudnn.benchmark = before
    assert on_gpu.calls == 3
    conv_relu(tensors[0].detach().contiguous(), *tensors[1:], [1, 1], 1, 1, 8)
    assert on_gpu.calls == 4
    conv_relu(*tensors, [1, 1], 1, 1, 8)
    assert on_gpu.calls == 4


def test_the_calls_that_are_remembered_are_bounded(
    on_gpu: Decisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ready, "_MOST_CALLS", 3)
    _, weight, bias = _tensors()
    for size in range(4, 12):
        conv_relu(torch.randn(1, 8, size, size), weight, bias, 1, 1, 1, 8)
        assert 1 <= len(READY) <= 3


def test_autocast_casts_before_a_call_that_is_ready(node: str, on_gpu: Decisions) -> None:
    tensors = _tensors()
    torch.set_autocast_enabled("cuda", True)
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        outputs = [conv_relu(*tensors, 1, 1, 1, 8) for _ in range(3)]
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
    assert on_gpu.calls == 1
    exact = conv2d(*(t.bfloat16() for t in tensors), 1, 1, 1, 8).relu()
    wanted = torch.autograd.grad(exact.float().sum(), tensors)
    for output in outputs:
        assert output.dtype == torch.bfloat16
        found = torch.autograd.grad(output.float().sum(), tensors)
        assert [g.dtype for g in found] == [torch.float32] * 3
        torch.testing.assert_close(found, wanted, rtol=5e-2, atol=5e-2)
    assert conv_relu(*tensors, 1, 1, 1, 8).dtype == torch.float32
    assert on_gpu.calls == 2


def test_a_module_in_use_is_copied_and_pickled(node: str, on_gpu: Decisions) -> None:
    layer = ConvReLU2d(8, 8, 3)
    x = torch.randn(1, 8, 6, 6)
    wanted = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(x), wanted)
    assert on_gpu.calls == 1


def test_a_mask_layers_inference_leaves_what_is_known_of_a_call(on_gpu: Decisions) -> None:
    layers = [ConvReLU2d(8, 8, 3, padding=1, save=save) for save in ("output", "mask")]
    x = _tensors()[0].detach()
    for _ in range(2):
        layers[0](x).sum().backward()
        with torch.no_grad():
            layers[1](x)
        assert on_gpu.gradients == 1
        assert on_gpu.calls == 1
    READY.clear()  # as where many threads decide at once
    call = _fused.call_of(_selection.Choice("torch+pass", {}), layers[0].weight, AT)
    arguments = (x, layers[0].weight, layers[0].bias, 1, 1, 1, 8)
    _ready.remember(call, *arguments)
    _ready.remember(lambda *_: x, *arguments)
    assert _ready.ready_call(*arguments) is call


@pytest.mark.parametrize("save", ["output", "mask"])
def test_the_nodes_have_their_languages_names(
    save: Any, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path.CHOSEN if save == "output" else Path.MASK
    monkeypatch.setattr(vf, "torch_is_best", lambda *_: False)
    monkeypatch.setattr(vf, "choose_path", lambda *_: path)
    monkeypatch.setattr("vramkit.nn._explain.choose_path", lambda *_: path)
    layer, x = ConvReLU2d(8, 8, 3, save=save), torch.randn(1, 8, 6, 6)
    monkeypatch.setattr(_selection._State, "mode", "default")
    output = layer(x)
    name = output.grad_fn.name()
    assert ("CppNode" in name) == (node == "C++")
    found = explain(layer, x)
    assert found.node is not None
    assert found.node.split(",")[0] == node
    assert ("\nnode:     Python, because the library" in str(found)) == (node == "Python")
    with torch.no_grad():
        assert explain(layer, x).node is None


def test_kernels_without_code_in_cpp_have_pythons_node() -> None:
    assert _node.plan_of(AT, "novel0", "", "") is None
    assert _node.plan_of(AT, "depthwise", "", "") is None
    call = _fused.call_of(_selection.Choice("torch+pass", {}), _tensors()[1], AT)
    assert call(*_tensors()).grad_fn.name().startswith("torch::autograd::CppNode")
    choice = _selection.Choice("novel0", {})
    assert isinstance(_fused.call_of(choice, _tensors()[1], AT), _fused._PythonCall)
    assert _fused.node_of(choice, AT) == "Python, because C++ has no code for novel0"


def test_gradients_without_code_in_cpp_are_pythons(
    on_gpu: Decisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fused._NativeCall, "settle", lambda *_: None)
    plan = _node.plan_of(AT, "torch+pass", "novel0", "torch")
    assert plan is not None
    call = _fused._NativeCall("torch+pass", AT, plan)
    for times in (1, 2):
        tensors = _tensors()
        _check_against_torch(tensors, call(*tensors), tolerance=1e-5)
        assert on_gpu.gradients == times


def test_an_unknown_plan_is_an_error() -> None:
    assert _node.has_native_nodes()
    for number in (-1, 10**9):
        with pytest.raises(
            RuntimeError, match=f"there is no plan {number} of a convolution; there"
        ):
            torch.ops.vramkit.conv_relu(*_tensors(), number, 0)


def test_without_the_library_pythons_nodes_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: str) -> str:
        raise BuildError(f"no compiler for {kind}")

    monkeypatch.setattr(_selection._State, "mode", "default")
    monkeypatch.setattr(_node, "adapter_path", fail)
    _node.has_native_nodes.cache_clear()
    tensors = _tensors()
    try:
        with pytest.warns(RuntimeWarning, match="those in Python serve: .* no compiler for node"):
            output = conv_relu(*tensors, padding=1, groups=8, save="mask")
        assert output.grad_fn.name() == "_MaskedReLUBackward"
        call = _fused.call_of(_selection.Choice("torch+pass", {}), tensors[1], AT)
        _check_against_torch(tensors, call(*tensors), tolerance=1e-5)
    finally:
        _node.has_native_nodes.cache_clear()
    monkeypatch.undo()
    assert _node.has_native_nodes()


def test_no_memory_for_an_own_kernel_is_pytorchs_error(on_gpu: Decisions) -> None:
    x = torch.randn(4, 64, 64, 64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 1, 3, 3, requires_grad=True)
    conv_relu(x, weight, None, 1, 1, 1, 64)
    [ready] = READY.values()
    assert ready.name.startswith("depthwise")
    with (
        vramkit.MemoryPool("2MiB", device="cpu"),
        pytest.raises(torch.OutOfMemoryError, match="depthwise_conv_relu: out of memory"),
    ):
        conv_relu(x, weight, None, 1, 1, 1, 64)
    output = conv_relu(x, weight, None, 1, 1, 1, 64)
    torch.testing.assert_close(output, conv2d(x, weight, None, 1, 1, 1, 64).relu())
