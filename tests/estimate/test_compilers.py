"""PyTorch's compilers in estimated steps, and after them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import vramkit

Step = Callable[[], Any]

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def test_a_compiled_model_of_several_ranks() -> None:
    def make_step() -> Step:
        distributed.init_process_group("nccl")
        layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).to("cuda")
        model = torch.compile(DistributedDataParallel(layers))
        return lambda: model(torch.randn(4, 64, device="cuda")).sum().backward()

    assert vramkit.estimate(step=make_step, world_size=2).parameters == 64 * 64 + 64


def _scripted() -> Callable[[torch.Tensor], torch.Tensor]:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor(2.0) * math.sqrt(4.0)

    made: Callable[[torch.Tensor], torch.Tensor] = torch.jit.script(scaled)
    return made


def test_scripts_that_a_step_compiles() -> None:
    def make_step() -> Step:
        scaled = _scripted()
        return lambda: scaled(torch.ones(256, device="cuda"))

    assert vramkit.estimate(step=make_step).peak_requested_bytes == 3 * 256 * 4
    assert _scripted()(torch.ones(1)).item() == 4


def _fuses() -> tuple[bool, bool]:
    return torch._C._jit_can_fuse_on_gpu(), torch._C._jit_texpr_fuser_enabled()


def _sharpened(x: torch.Tensor) -> torch.Tensor:
    return (x * 1.5 + 2.0).relu() * x.sigmoid()


def test_scripts_are_not_fused_for_the_pretended_gpu() -> None:
    before, within, scripted = _fuses(), [], torch.jit.script(_sharpened)

    def make_step() -> Step:
        layer, x = torch.nn.Linear(64, 64, device="cuda"), torch.randn(8, 64, device="cuda")

        def step() -> None:
            within.append(_fuses())
            scripted(layer(x)).sum().backward()

        return step

    found = vramkit.estimate(step=make_step, steps=4)
    assert within == [(False, False)] * 4
    assert _fuses() == before
    assert 4 * 64 * 64 in [
        each.size_bytes for each in found.trace.blocks if each.kind == "gradients"
    ]
