"""Bags of embeddings, held against calls that were recorded on an H200 (torch 2.11.0+cu130)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.phases import changes_in, one_a_step

from vramkit.estimate import find_target
from vramkit.estimate._recorder import Trace
from vramkit.estimate._trace import trace

_H200 = find_target("h200")
_CASES = json.loads((Path(__file__).parent / "embedding-bag-h200.json").read_text(encoding="utf-8"))
_BUILD, _FORWARD, _BACKWARD = 1, 2, 4


def _name(case: dict[str, Any]) -> str:
    parts = [str(case[part]) for part in ("rows", "offsets", "weights") if part in case]
    return "-".join([*parts, *(f"{name}={value}" for name, value in case["options"].items())])


def _phases(case: dict[str, Any]) -> Callable[[], Callable[[], None]]:
    """Indices, table, forward pass, gradient and backward pass, each as a step of its own."""
    bags, each = case["bags"], case["each"]

    def make_step() -> Callable[[], None]:
        made: dict[str, Any] = {}

        def data() -> None:
            made["x"] = torch.randint(0, case["rows"], (bags, each), device="cuda")
            made["offsets"] = torch.arange(0, bags * each, each, device="cuda")
            learned = case.get("weights") == "learned"
            made["weights"] = torch.rand(bags, each, device="cuda", requires_grad=learned)

        def build() -> None:
            sizes = (case["rows"], case["width"])
            made["table"] = torch.nn.EmbeddingBag(*sizes, device="cuda", **case["options"])

        def forward() -> None:
            if case.get("offsets"):
                made["out"] = made["table"](made["x"].flatten(), made["offsets"])
            else:
                weights = made["weights"] if "weights" in case else None
                made["out"] = made["table"](made["x"], per_sample_weights=weights)

        def gradient() -> None:
            made["gradient"] = torch.ones_like(made["out"])

        def backward() -> None:
            made["out"].backward(made["gradient"])

        return one_a_step(data, build, forward, gradient, backward)

    return make_step


@pytest.mark.parametrize("case", _CASES, ids=_name)
def test_recorded_calls(case: dict[str, Any]) -> None:
    found = trace(_phases(case), target=_H200, steps=5)
    for step, phase in ((_BUILD, "build"), (_FORWARD, "forward"), (_BACKWARD, "backward")):
        assert changes_in(found, step) == case[phase], phase
    assert found.unknown == ()


def _backward(found: Trace) -> list[int]:
    name = "aten::_embedding_bag_backward"
    return [block.size_bytes for block in found.blocks if block.operator == name]


def _training(bags: int, *, mode: str = "sum", expanded: bool = False) -> Trace:
    def make_step() -> Callable[[], None]:
        table = torch.nn.EmbeddingBag(500, 16, mode=mode, device="cuda")
        x = torch.zeros(bags, 4, dtype=torch.int64, device="cuda")

        def step() -> None:
            out = table(x)
            out.backward(torch.ones(16, device="cuda").expand_as(out) if expanded else out.detach())

        return step

    return trace(make_step, target=_H200, steps=1)


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_an_expanded_gradient_is_copied(mode: str) -> None:
    plain, expanded = (_backward(_training(32, mode=mode, expanded=each)) for each in (False, True))
    assert expanded == [32 * 16 * 4, *plain]


def test_no_bags_sort_nothing() -> None:
    assert _backward(_training(0)) == [500 * 16 * 4]
