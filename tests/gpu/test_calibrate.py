"""``vramkit calibrate`` on a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vramkit.estimate import Target, calibrate, estimate
from vramkit.estimate._calibrate import _measured

_MIB = 1 << 20


def _make_step() -> Callable[[], None]:
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 1)).to("cuda")
    x = torch.zeros(4, 3, 40, 40, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()

    return step


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, dict[str, Any]]:
    file: Path = tmp_path_factory.mktemp("calibrated") / "gpu.json"
    found = calibrate(file, step=_make_step, repeats=1)
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    print(json.dumps({**content, "convolutions": content["convolutions"]["workspaces"]}))
    return found, content


def test_what_is_measured_is_plausible(gpu: tuple[Target, dict[str, Any]]) -> None:
    target, content = gpu
    properties = torch.cuda.get_device_properties(0)
    assert (target.title, target.multi_processors) == (
        properties.name,
        properties.multi_processor_count,
    )
    uses = content["outside"]["first_uses"]
    assert 100 * _MIB < uses["context"] < target.outside_bytes < 8000 * _MIB
    assert {"cuBLAS", "cuDNN", "training", "cuSOLVER", "cuFFT"} <= set(uses)
    # 32 MiB on compute capability 9 and 10, otherwise a little more than 8.
    assert 8 * _MIB <= target.cublas_bytes <= 64 * _MIB
    assert target.cudnn_version == torch.backends.cudnn.version()


def test_the_step_s_convolutions_are_measured(gpu: tuple[Target, dict[str, Any]]) -> None:
    target, content = gpu
    assert len(content["convolutions"]["workspaces"]) == 2
    assert estimate(step=_make_step, target=target, steps=1).trace.unmeasured == ()


def test_a_recorded_convolution_is_measured_again() -> None:
    from vramkit.estimate import find_target

    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the recorded convolutions are those of an H100")
    recorded = find_target("h100").convolutions
    names = [name for name in recorded if name.startswith("32x128")][:6]
    found = _measured("convolutions", {"signatures": names})["workspaces"]
    same = [tuple(found[name]) == recorded[name] for name in names]
    print({name: (found[name], recorded[name]) for name in names})
    # Another version of cuDNN may choose other engines.
    assert torch.backends.cudnn.version() != 91900 or sum(same) >= len(names) // 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_communicators_are_measured(gpu: tuple[Target, dict[str, Any]]) -> None:
    sizes = gpu[0].communicator_bytes
    assert sizes["first"] > _MIB
    assert {"first", "further", "all_to_all"} <= set(sizes)
