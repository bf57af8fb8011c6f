"""``vramkit calibrate`` on a GPU, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vramkit.estimate import Target, find_target
from vramkit.estimate._calibrate import _measured

_MIB = 1 << 20
_PROGRAM = """
import torch
from torch import nn

def make_step():
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 1)).to("cuda")
    x = torch.zeros(4, 3, 40, 40, device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()

    return step
"""


def command(*words: str) -> dict[str, Any]:
    """Run a command of vramkit; returns what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "vramkit", *words, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("calibrated") / "program.py"
    file.write_text(_PROGRAM, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def gpu(program: Path) -> tuple[Target, dict[str, Any]]:
    file = program.parent / "gpu.json"
    command("calibrate", f"{program}:make_step", "--output", str(file), "--repeats", "1")
    text = file.read_text(encoding="utf-8")
    print(text)
    return find_target(file), json.loads(text)


def test_what_is_measured_is_plausible(gpu: tuple[Target, dict[str, Any]]) -> None:
    target, content = gpu
    properties = torch.cuda.get_device_properties(0)
    assert target.title == properties.name
    assert target.multi_processors == properties.multi_processor_count
    uses = content["outside"]["first_uses"]
    assert 100 * _MIB < uses["context"] < target.outside_bytes < 8000 * _MIB
    assert {"cuBLAS", "cuDNN", "training", "cuSOLVER", "cuFFT"} <= set(uses)
    # 32 MiB on compute capability 9 and 10, otherwise a little more than 8.
    assert 8 * _MIB <= target.cublas_bytes <= 64 * _MIB
    assert target.cudnn_version == torch.backends.cudnn.version()


def test_the_step_s_convolutions_are_measured(
    gpu: tuple[Target, dict[str, Any]], program: Path
) -> None:
    assert len(gpu[1]["convolutions"]["workspaces"]) == 2
    file = program.parent / "gpu.json"
    report = command("estimate", f"{program}:make_step", "--target", str(file))
    assert not [reason for reason in report["uncertain"] if "formula" in reason]


def test_a_recorded_convolution_is_measured_again() -> None:
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
