"""Steps that take derivatives by ``torch.func``, forward mode among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import vramkit
from vramkit.estimate._trace import trace

# PyTorch compiles formulas of forward mode by it, at their first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def test_hessians_of_a_batch() -> None:
    def make_step() -> Callable[[], Any]:
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        model.to("cuda")
        x = torch.randn(4, 8, device="cuda")
        hessian = torch.func.hessian(lambda sample: model(sample).squeeze())
        shapes: list[Any] = []

        def step() -> None:
            shapes.append(torch.func.vmap(hessian)(x).shape)
            assert shapes[-1] == (4, 8, 8)

        return step

    assert vramkit.estimate(step=make_step).peak.by_kind["parameters"] == 4 * (8 * 16 + 16 + 16 + 1)


def test_tangents_of_zeros_take_no_memory() -> None:
    def make_step() -> Callable[[], Any]:
        x, tangent = torch.randn(2, 1024, device="cuda")

        def step() -> None:
            torch._efficientzerotensor((1 << 20,), device="cuda")
            with forward_ad.dual_level():
                y = forward_ad.make_dual(x, tangent)
                assert forward_ad.unpack_dual(y * 2).tangent is not None

        return step

    found = trace(make_step, target=vramkit.estimate.find_target("h100"))
    assert max(block.size_bytes for block in found.blocks) == 2 * 1024 * 4
