"""The file of ``vramkit calibrate``: its format, and measuring without a GPU."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vramkit.cli import main
from vramkit.errors import CalibrationError, InvalidArgumentError, UnsupportedDeviceError
from vramkit.estimate import _calibrate, calibrate, estimate, find_target
from vramkit.estimate._calibrate_worker import between, dropped_at_once, parse_signature
from vramkit.estimate._calibration import read_calibration, write_calibration
from vramkit.estimate._targets import shipped_file
from vramkit.estimate.config import Parallel, Training, estimate_training, read_model

_SIGNATURE = "2x8x9x9 16x8x3x3 1,1,1,1,1,1 1 float32 nchw"
_RUN: dict[str, Any] = {
    "gpu": {
        "title": "NVIDIA H200",
        "capability": [9, 0],
        "multi_processors": 132,
        "threads_per_multi_processor": 2048,
        "l2_bytes": 62_914_560,
        "total_bytes": 150_000_000_000,
    },
    "versions": {"torch": "2.11.0+cu130", "cuda": "13.0", "cudnn": 91900},
    "outside_bytes": 1_000_000_000,
    "first_uses": {"context": 600_000_000, "cuBLAS": 70_000_000, "cuFFT": 5_000_000},
    "workspaces": {"cublas_bytes": 33_554_432, "cublas_lt_bytes": 1_048_576},
}
_NCCL = {"first": 500, "all_gather": 3, "reduce_scatter": 2, "all_to_all": 40, "further": 100}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Workers that answer at once; returns what they are asked for."""
    asked: list[dict[str, Any]] = []

    def answer(kind: str, wanted: dict[str, Any]) -> dict[str, Any]:
        asked.append({"kind": kind, **wanted})
        if kind == "libraries":
            return {**_RUN, "outside_bytes": _RUN["outside_bytes"] + 1000 * len(asked)}
        return {"workspaces": {name: [7, 8, 9] for name in wanted["signatures"]}}

    monkeypatch.setattr(_calibrate, "_measured", answer)
    monkeypatch.setattr(_calibrate, "_measured_pair", lambda: _NCCL)
    monkeypatch.setattr(_calibrate, "_count_gpus", lambda: 2)
    return asked


def _convolving() -> Callable[[], Any]:
    layer = torch.nn.Conv2d(8, 16, 3, padding=1, device="cuda")
    x = torch.zeros(2, 8, 9, 9, device="cuda")
    return lambda: layer(x).sum().backward()


def test_a_calibrated_gpu_is_a_target(tmp_path: Path, measured: list[dict[str, Any]]) -> None:
    done: list[tuple[int, int]] = []
    file = tmp_path / "gpu.json"
    found = calibrate(file, step=_convolving, repeats=3, progress=lambda *each: done.append(each))
    assert found == find_target(file) == find_target(str(file))
    assert (found.name, found.measured, found.assumed) == ("nvidia-h200", True, "")
    sizes = found.outside_low_bytes, found.outside_bytes, found.outside_high_bytes
    assert sizes == (1_000_001_000, 1_000_002_000, 1_000_003_000)
    assert found.convolutions[_SIGNATURE] == (7, 8, 9)
    assert len(found.convolutions) > 50  # those of the H100, of the same generation
    assert found.library_bytes == {"cuFFT": 5_000_000}
    assert found.communicator_bytes == _NCCL
    assert [each["kind"] for each in measured] == ["libraries"] * 3 + ["convolutions"]
    assert done[0] == (1, 5)
    assert done[-1] == (5, 5)


def test_measured_workspaces_are_not_assumed(
    tmp_path: Path, measured: list[dict[str, Any]]
) -> None:
    before = estimate(step=_convolving, target="h200", steps=1)
    assert before.trace.unmeasured == (_SIGNATURE,)
    gpu = calibrate(tmp_path / "gpu.json", convolutions=before.trace.unmeasured, nccl=False)
    after = estimate(step=_convolving, target=gpu, steps=1)
    assert after.trace.unmeasured == ()
    assert after.trace.assumed_bytes == {}
    assert {7, 9} <= {block.size_bytes for block in after.trace.blocks}
    assert gpu.communicator_bytes == {}


def test_a_library_s_first_use_is_added(tmp_path: Path, measured: list[dict[str, Any]]) -> None:
    gpu = calibrate(tmp_path / "gpu.json", nccl=False)

    def make_step() -> Callable[[], Any]:
        x = torch.zeros(64, 64, device="cuda")
        return lambda: torch.fft.rfft(x)

    found = estimate(step=make_step, target=gpu, steps=1)
    assert found.device_bytes - found.reserved_bytes["native"] == gpu.outside_bytes + 5_000_000
    assert found.target.outside_low_bytes == gpu.outside_low_bytes + 5_000_000


def test_measured_communicators_replace_assumed_ones(
    tmp_path: Path, measured: list[dict[str, Any]]
) -> None:
    gpu = calibrate(tmp_path / "gpu.json")
    options = Training(parallel=Parallel(tensor=2, data=4, expert=4))
    found = estimate_training(read_model("mixtral-8x7b"), options, target=gpu)
    assert found.amount("communicators") == 500 + 2 * 100 + 40


@pytest.mark.parametrize("name", ["h100", "h200"])
def test_what_is_shipped_has_the_same_format(name: str) -> None:
    own, found = read_calibration(shipped_file(name)), find_target(name)
    assert len(own.convolutions) > 50
    assert own == dataclasses.replace(found, convolutions=own.convolutions)
    assert found.convolutions.items() >= own.convolutions.items()


def _whole(file: Path, **changes: Any) -> Path:
    values = {**json.loads(shipped_file("h100").read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "other"}, r"gpu\.json was not written by vramkit calibrate"),
        ({"version": 2}, r"has version 2 of the format, this vramkit reads 1; run"),
        ({"gpu": None}, r"'gpu' must be an object, got None"),
        ({"name": ""}, r"'name' must be a text, got ''"),
        ({"workspaces": {"cublas_bytes": -1}}, r"workspaces: 'cublas_bytes' must be an integer"),
        ({"convolutions": {"workspaces": {"a": [1]}}}, r"'a' must be a list of 3 integers"),
        (
            {"communicator_bytes": {"first": 1}},
            r"'further' must be an integer of at least 0",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        find_target(_whole(tmp_path / "gpu.json", **changes))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no\.json cannot be read: No such file"):
        find_target(str(tmp_path / "no.json"))
    file = tmp_path / "gpu.json"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="is not valid JSON"):
        find_target(file)
    with pytest.raises(InvalidArgumentError, match="'gpu' must be an object"):
        write_calibration({}, file)
    assert file.read_text(encoding="utf-8") == "{"


def test_signatures() -> None:
    found = parse_signature("1x8x9 8x4x3 2,1,1 1 bfloat16 nchw transposed 1")
    assert found["transposed"]
    assert found["output_padding"] == [1]
    for wrong in ("", "2x8x9x9 16x8x3x3 1,1 1 float32 nchw", "8 8 1 1 float32 nchw"):
        with pytest.raises(InvalidArgumentError, match="is no signature of a convolution"):
            parse_signature(wrong)


def test_a_transposed_convolution_has_its_own_signature() -> None:
    def make_step() -> Callable[[], Any]:
        layer = torch.nn.ConvTranspose2d(8, 4, 3, 2, 1, 1, device="cuda")
        x = torch.zeros(1, 8, 5, 5, device="cuda")
        return lambda: layer(x)

    [name] = estimate(step=make_step, steps=1).trace.unmeasured
    assert name.endswith("float32 nchw transposed 1,1")
    assert parse_signature(name)["output_padding"] == [1, 1]


def test_a_recording_between_its_marks() -> None:
    events = [
        {"action": "alloc", "addr": 1, "size": 64},
        {"action": "alloc", "addr": 2, "size": 777},
        {"action": "alloc", "addr": 3, "size": 100},
        {"action": "segment_alloc", "addr": 9, "size": 1 << 20},
        {"action": "alloc", "addr": 4, "size": 30},
        {"action": "free_requested", "addr": 4, "size": 30},
        {"action": "free_completed", "addr": 4, "size": 512},
        {"action": "alloc", "addr": 5, "size": 778},
        {"action": "alloc", "addr": 6, "size": 8},
    ]
    assert between(events) == [100, 30, -30]
    assert dropped_at_once(between(events), 1) == [30]


def test_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UnsupportedDeviceError, match="calibration measures a GPU, but"):
        calibrate(tmp_path / "gpu.json")
    assert main(["calibrate", "--output", str(tmp_path / "gpu.json")]) == 2
    assert "run it on the machine that the estimates are for" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command(
    tmp_path: Path, measured: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    names, file = tmp_path / "names.txt", tmp_path / "gpu.json"
    names.write_text(f"{_SIGNATURE}\n\n", encoding="utf-8")
    command = ["calibrate", "--output", str(file), "--convolutions", str(names), "--repeats", "1"]
    assert main(command) == 0
    assert "NVIDIA H200: 953.7 MiB outside PyTorch's allocator" in capsys.readouterr().out
    assert main([*command, "--json", "--no-nccl"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "nvidia-h200"
    assert main(["estimate", "--config", "qwen3-0.6b", "--target", str(file)]) == 0
    names.write_bytes(b"\xff")
    assert main(command) == 2
    assert main(["calibrate", "--output", "gpu.txt"]) == 2
    assert "must end in .json" in capsys.readouterr().err


def test_a_worker_that_fails() -> None:
    with pytest.raises(CalibrationError, match=r"measuring nothing failed with status 1:\n"):
        _calibrate._measured("nothing", {})


def test_repeats_below_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="repeats must be at least 1, got 0"):
        calibrate(tmp_path / "gpu.json", repeats=0)


_MEETING = """
import json, os, sys, time
from pathlib import Path

sys.stdin.read()
rank, store = int(os.environ["VRAMKIT_RANK"]), os.environ["VRAMKIT_STORE"]
Path(f"{store}{rank}").touch()
end = time.monotonic() + 60
while not Path(f"{store}{1 - rank}").exists():
    if time.monotonic() > end:
        sys.exit("the other rank never came")
    time.sleep(0.01)
print(json.dumps({"first": 10 + rank}))
"""


def test_two_ranks_that_wait_for_each_other_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meeting.py").write_text(_MEETING, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(_calibrate, "_WORKER", "meeting")
    monkeypatch.setattr(_calibrate, "_TIMEOUT_S", 30)
    assert _calibrate._measured_pair() == {"first": 11}


def test_a_rank_that_fails_ends_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = _MEETING.replace(
        "sys.stdin.read()",
        "sys.stdin.read()\nint(os.environ['VRAMKIT_RANK']) or sys.exit('no NCCL')",
    )
    (tmp_path / "failing.py").write_text(failing, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(_calibrate, "_WORKER", "failing")
    with pytest.raises(CalibrationError, match="no NCCL"):
        _calibrate._measured_pair()
