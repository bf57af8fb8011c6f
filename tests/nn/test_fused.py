"""Every kernel that can serve a call, as one node of autograd, gives torch's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.nn import _fused, _selection
from vramkit.nn._candidates import FORWARD, Geometry, forward_names, gradient_names
from vramkit.nn._fused import ConvReLUNode
from vramkit.nn._selection import Choice, Key


def _tensors(kernel: int, bias: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(kernel)
    x = torch.randn(2, 8, 9, 10, dtype=dtype).contiguous(memory_format=torch.channels_last)
    tensors = [x, torch.randn(8, 1, kernel, kernel, dtype=dtype)]
    tensors += [torch.randn(8, dtype=dtype)] if bias else []
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_depthwise_outputs_and_gradients_are_torchs(
    kernel: int, stride: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = _tensors(kernel, bias, torch.float32)
    at = Geometry((stride, stride), (kernel // 2, 1), (1, 1), 8)
    wanted = conv2d(*tensors, *([] if bias else [None]), stride, at.padding, groups=8).relu()
    grad = torch.randn_like(wanted)
    exact = torch.autograd.grad(wanted, tensors, grad)
    names = forward_names(tensors[0], tensors[1], at)
    assert names == ("torch+pass", "depthwise0", "depthwise1")
    for name in names:

        def pick(_: Key, runs: Any, last: str = name) -> Choice:
            return Choice("torch" if last == "torch+pass" else list(runs())[-1], {})

        monkeypatch.setattr(_fused, "choose", pick)
        output = ConvReLUNode.apply(*tensors, *([] if bias else [None]), at, name)
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
        found = torch.autograd.grad(output, tensors, grad)
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("group", [2, 8, 16, 32])
@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_outputs_and_gradients_are_torchs(
    stride: int, group: int, form: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(group)
    x = torch.randn(1, 32, 9, 10).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(32, group, 3, 3).bfloat16().contiguous(memory_format=form)
    tensors = [t.requires_grad_() for t in (x, weight, torch.randn(32).bfloat16())]
    at = Geometry((stride, stride), (1, 0), (1, 1), 32 // group)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    wanted = conv2d(*wide, stride, at.padding, groups=at.groups)
    names = forward_names(x, weight, at)
    assert names == ("torch+pass", "grouped0", "grouped1", "grouped2")
    for name in names[1:]:
        monkeypatch.setattr(_fused, "choose", lambda *_, name=name: Choice(name, {}))
        output = ConvReLUNode.apply(*tensors, at, name)
        torch.testing.assert_close(output.double(), wanted.relu(), rtol=1e-2, atol=1e-2)
        grad = torch.randn_like(output)
        exact = torch.autograd.grad(
            wanted, wide, torch.where(output > 0, grad, 0).double(), retain_graph=True
        )
        found = torch.autograd.grad(output, tensors, grad)
        assert found[1].is_contiguous(memory_format=form)
        for gradient, reference in zip(found, exact, strict=True):
            torch.testing.assert_close(gradient.double(), reference, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": torch.float32},
        {"form": torch.contiguous_format},
        {"outputs": 64},
        {"kernel": 5},
        {"dilation": 2},
        {"channels": 48, "group": 24},
        {"channels": 12, "group": 4},
    ],
)
def test_what_the_grouped_kernels_do_not_take(change: dict[str, Any]) -> None:
    given = {"channels": 32, "group": 8, "kernel": 3, "dilation": 1, "dtype": torch.bfloat16}
    given |= {"form": torch.channels_last, "outputs": change.get("channels", 32)} | change
    x = torch.randn(1, given["channels"], 11, 11).to(given["dtype"])
    x = x.contiguous(memory_format=given["form"])
    weight = torch.randn(given["outputs"], given["group"], given["kernel"], given["kernel"])
    at = Geometry((1, 1), (0, 0), (given["dilation"],) * 2, given["channels"] // given["group"])
    weight = weight.to(given["dtype"])
    assert forward_names(x, weight, at) == ("torch+pass",)
    assert gradient_names(conv2d(x, weight, None, *at), x, weight, at) == ("torch",)


def test_second_derivatives() -> None:
    tensors = _tensors(3, True, torch.float64)
    at = Geometry((1, 1), (1, 1), (1, 1), 8)
    assert torch.autograd.gradgradcheck(
        lambda *given: ConvReLUNode.apply(*given, at, "torch+pass").square(),
        tensors,
        fast_mode=True,
    )


def test_a_stem_is_one_of_the_candidates() -> None:
    x = torch.randn(1, 3, 9, 9).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(32, 3, 3, 3).bfloat16()
    at = Geometry((2, 2), (1, 1), (1, 1), 1)
    for name in forward_names(x, weight, at):
        found = FORWARD[name](x, weight, None, at)
        wanted = conv2d(x, weight, None, 2, 1).relu()
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    assert name == "stem1"


def test_the_fastest_is_chosen_and_failures_are_told() -> None:
    def fail() -> None:
        raise RuntimeError("not supported")

    runs = {"first": lambda: 2.0, "broken": fail, "fast": lambda: 1.0, "same": lambda: 0.99}
    choice = _selection.fastest(runs, lambda run, _: run())
    assert choice.name == "fast"
    assert str(choice) == "first 2.0000 ms, broken failed, fast 1.0000 ms, same 0.9900 ms"
    with pytest.raises(RuntimeError, match="not supported"):
        _selection.fastest({**runs, "first": fail}, lambda run, _: run())


def test_choices_are_remembered_stored_and_not_made_in_deterministic_mode(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "choices.jsonl"
    runs, key = {"first": lambda: 2.0, "fast": lambda: 1.0}, Key(("a",), (1,))
    monkeypatch.setattr(_selection, "_gpu_ms", lambda run, _: run())
    try:
        _selection.set_kernel_choice("measured", file=file)
        assert _selection.choose(key, lambda: runs).name == "fast"
        assert _selection.known(key) is not None
        torch.use_deterministic_algorithms(True)
        assert _selection.choose(key, lambda: runs).name == "first"
        torch.use_deterministic_algorithms(False)
        _selection.set_kernel_choice("measured", file=file)
        assert _selection.choose(key, lambda: {"first": None, "fast": None}).name == "fast"
        _selection.set_kernel_choice("default", file=file)
        assert _selection.choose(key, lambda: runs).name == "first"
        file.write_text("nonsense\n")
        with pytest.raises(ValueError, match="line 1, is no kernel choice"):
            _selection.set_kernel_choice("measured", file=file)
    finally:
        torch.use_deterministic_algorithms(False)
        _selection.set_kernel_choice("measured")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"\xff\xfe", "cannot be read .*invalid start byte.*; give another path"),
        (b'{"key": "k", "na', "line 1, is no kernel choice .*remove the file"),
        (b"[1]\n", "line 1, is no kernel choice .*expected the texts"),
        (b'{"key": "k", "name": 3, "times_ms": {}}\n', "line 1, is no kernel choice"),
        (b'{"key": "k", "name": "a", "times_ms": {"a": "1"}}\n', "line 1, is no kernel choice"),
    ],
)
def test_files_of_something_else_are_errors(content: bytes, error: str, tmp_path: Path) -> None:
    file = tmp_path / "choices.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=error):
        _selection.set_kernel_choice("measured", file=file)


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        _selection.set_kernel_choice("measured", file=tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"the folder of file=.* does not exist"):
        _selection.set_kernel_choice("measured", file=tmp_path / "missing" / "choices.jsonl")
    with pytest.raises(ArgumentTypeError, match="file must be a path, got int"):
        _selection.set_kernel_choice("measured", file=3)  # type: ignore[arg-type]


def test_ever_new_sizes_are_served_as_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def measure(run: Any, count: int) -> float:
        taken.append(count)
        return run()

    monkeypatch.setattr(_selection, "_gpu_ms", measure)
    _selection.set_kernel_choice("measured")
    try:
        for size in range(1, 9):
            runs = {"first": lambda: 2.0, "fast": lambda s=size: 1.0 if s > 4 else 3.0}
            _selection.choose(Key(("a",), (size, 10)), lambda runs=runs: runs)
        taken.clear()
        for size, name in ((3, "first"), (100, "fast")):
            key = Key(("a",), (size, 11))
            choice = _selection.choose(key, lambda: {"first": None, "fast": None})
            assert choice == Choice(name, {})
        assert taken == []
        # What serves the nearest size does not serve this one.
        runs = {"first": lambda: 2.0, "other": lambda: 1.0}
        assert _selection.choose(Key(("a",), (101, 11)), lambda: runs).name == "other"
    finally:
        _selection.set_kernel_choice("measured")
