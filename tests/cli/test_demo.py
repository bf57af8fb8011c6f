import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from vramkit import MemoryPool
from vramkit.cli import main
from vramkit.cli._demo import _picture, _run, check_budget
from vramkit.cli._demo._memory import MemoryRecorder, Sample
from vramkit.cli._demo._outcome import Outcome, to_text
from vramkit.cli._demo._progress import Progress
from vramkit.cli._demo._training import Training, load_digits

MIB = 1 << 20
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One epoch in a fresh process: too short for the accuracy, enough for everything else."""
    return demo("--epochs", "1", "--json", out=tmp_path_factory.mktemp("demo") / "a.png")


def demo(*arguments: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vramkit", "demo", "--out", str(out), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def make_outcome(**changes: Any) -> Outcome:
    pool = MemoryPool("8MiB", device="cpu")
    sound = Outcome(
        steps=24,
        equal_losses=24,
        final_loss=0.1,
        accuracy=0.98,
        stats=pool.stats(),
        seconds=1.0,
        samples=500,
        picture=Path("a.png"),
    )
    return replace(sound, **changes)


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    done = demo(out=tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert "losses         144 of 144 equal those outside the pool, bit for bit" in done.stdout
    assert "vramkit memory pool, device cpu, 16.0 MiB" in done.stdout
    assert f"picture        {tmp_path / 'a.png'} (2,448 samples)" in done.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(PNG_MAGIC)


def test_json(short_run: subprocess.CompletedProcess[str]) -> None:
    report = json.loads(short_run.stdout)
    assert report["steps"] == report["equal_losses"] == 12
    assert report["capacity_bytes"] == 16 * MIB
    assert MIB < report["peak_live_bytes"] < report["peak_mapped_bytes"] <= 16 * MIB
    assert report["samples"] == 12 * 17
    assert Path(report["picture"]).read_bytes().startswith(PNG_MAGIC)


def test_too_low_an_accuracy_fails(short_run: subprocess.CompletedProcess[str]) -> None:
    report = json.loads(short_run.stdout)
    assert short_run.returncode == 1
    assert not report["passed"]
    assert report["accuracy"] < 0.97
    assert (
        f"vramkit demo: the test accuracy is {report['accuracy']:.4f}, below the 0.97 wanted: "
        "train longer (--epochs), or try another --seed"
    ) in short_run.stderr


def test_lines_instead_of_a_bar(short_run: subprocess.CompletedProcess[str]) -> None:
    header, outside, inside, _ = short_run.stderr.splitlines()
    assert header == (
        "vramkit demo: 1,437 images of handwritten digits to train on, 360 to test on, "
        f"on {_run.device_note(_run.training_device())}"
    )
    assert outside.startswith("outside the pool: step 12 of 12, loss ")
    assert inside == outside.replace("outside", "inside")


def test_a_budget_that_is_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "a.png"
    command = ["demo", "--epochs", "1", "--budget", "2MiB", "--out", str(picture)]
    assert main(command) == 1
    printed = capsys.readouterr()
    told = printed.err.splitlines()[-1]
    assert told.startswith("vramkit demo: the budget of 2.0 MiB is too small, try --budget 16MiB. ")
    assert "out of memory" in told
    assert "resize" not in printed.err
    assert printed.out == ""
    assert not picture.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--budget", "2G"], "--budget '2G': the unit 'G' is ambiguous"),
        (["--budget", "50%"], "--budget '50%' cannot be read; write a number and a unit, such as"),
        (["--budget", "-1GiB"], "--budget must be at least 1 byte, got '-1GiB'"),
        (["--budget", "1.5"], "--budget 1.5: a fraction of the free memory must be in"),
        (
            ["--budget", "1024"],
            "--budget '1024' is 1.0 KiB, less than one page of 2.0 MiB; a whole",
        ),
        (["--budget", "8EiB"], "--budget '8EiB' is 8.0 EiB, but this process can have at most"),
        (["--out", "a" * 300 + "/a.png"], "cannot be used (File name too long)"),
        (["--out", "nowhere/a.png"], "there is no folder nowhere; make it, or name another"),
        (["--out", "."], "--out . is a folder; name a file in it"),
    ],
)
def test_bad_input(
    arguments: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise AssertionError("the data were loaded before the arguments were checked")

    monkeypatch.setattr("vramkit.cli._demo._training.load_digits", refuse)
    assert main(["demo", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_part_of_the_free_memory_is_a_budget() -> None:
    assert check_budget("16MiB", CPU) == 16 * MIB
    assert check_budget(None, CPU) == 16 * MIB
    assert check_budget("0.5", CPU) == pytest.approx(check_budget(".25", CPU) * 2, rel=0.2)


def test_json_of_a_budget_that_is_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["demo", "--json", "--epochs", "1", "--budget", "2MiB", "--out", str(tmp_path / "a")]
    assert main(command) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["status"] == 1
    assert error["type"] == "OutOfMemoryError"
    assert error["message"].startswith("the budget of 2.0 MiB is too small")


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["demo", "--out", str(tmp_path / "a.png")]) == 2
    assert f"you may not write to {tmp_path}; name another" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_run, "train", lambda *_, **__: Training(torch.zeros(3), 1.0))
    monkeypatch.setattr(_run, "draw", lambda *_, **__: Path("/proc/a/b").write_bytes(b""))
    assert main(["demo", "--out", "a.png"]) == 74
    assert "--out a.png: the picture cannot be written ([Errno 2]" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["sklearn", "matplotlib", "tqdm"])
def test_a_missing_package_is_named(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert f"the package '{package}' cannot be imported" in error
    assert "pip install 'vramkit[demo]'" in error


def test_losses_that_differ_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pool = MemoryPool("8MiB", device="cpu")
    plan = _run.Plan(epochs=1, seed=0, out=tmp_path / "a.png")
    outside_then_inside = iter([0.0, 1e-7])

    def train_differently(*_: object, look: Any, **__: object) -> Training:
        look("forward")
        look("optimizer")
        return Training(torch.tensor([0.5, 0.25 + next(outside_then_inside), 0.125]), 1.0)

    monkeypatch.setattr(_run, "train", train_differently)
    outcome = _run.run_demo(load_digits(), torch.device("cpu"), pool, plan)
    assert outcome.equal_losses == 2
    [fault] = outcome.faults
    assert fault.startswith(
        "the losses inside and outside the pool differ in 1 of 3 steps: tensors"
    )


def test_a_sound_outcome() -> None:
    assert make_outcome().faults == []
    assert "memory         0 B live and 0 B mapped at the peak, of a budget of 8.0 MiB" in to_text(
        make_outcome()
    )


def test_the_threshold() -> None:
    assert make_outcome(accuracy=0.97).faults == []
    [fault] = make_outcome(accuracy=0.9699).faults
    assert "0.9699, below the 0.97 wanted" in fault


def test_an_accelerator_that_has_no_pools_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda **_: torch.device("xpu", 0)
    )
    assert _run.device_note(torch.device("cpu")) == (
        "the CPU: there are no pools for devices of type 'xpu'"
    )


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    device = _run.training_device()
    assert device == torch.device("cuda", 1)
    assert _run.budget_for(device) == "128MiB"
    assert _run.budget_for(torch.device("cpu")) == "16MiB"


def test_samples_are_what_the_pool_holds() -> None:
    pool = MemoryPool("8MiB", device="cpu")
    recorder = MemoryRecorder(pool)
    with pool:
        kept = torch.empty(MIB, dtype=torch.uint8)
        recorder.look("forward")
        more = torch.empty(2 * MIB, dtype=torch.uint8)
        recorder.look("optimizer")
        del more
        recorder.look("forward")
    assert [sample.live_bytes for sample in recorder.samples] == [MIB, 3 * MIB, kept.nbytes]
    assert [sample.mapped_bytes for sample in recorder.samples] == [2 * MIB, 4 * MIB, 4 * MIB]
    assert [(sample.step, sample.phase) for sample in recorder.samples] == [
        (1, "forward"),
        (1, "optimizer"),
        (2, "forward"),
    ]
    assert sorted(s.seconds for s in recorder.samples) == [s.seconds for s in recorder.samples]


SAMPLES = [
    Sample(step, phase, step + 0.1 * number, live * MIB, 6 * MIB)
    for step in range(1, 7)
    for number, (phase, live) in enumerate(
        [("forward", 3), ("backward", 5 if step != 6 else 4), ("optimizer", 1)]
    )
]


def test_the_picture_shows_the_samples() -> None:
    axes = Figure().subplots()
    _picture._draw_steps(axes, SAMPLES, MemoryPool("8MiB", device="cpu").stats())
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert curves["mapped"] == [6] * 6
    assert curves["live"] == [5, 5, 5, 5, 5, 4]


def test_the_detail_shows_full_steps() -> None:
    assert {sample.step for sample in _picture._full_steps(SAMPLES)} == {3, 4, 5}
    assert {sample.step for sample in _picture._full_steps(SAMPLES[:3])} == {1}


@pytest.mark.parametrize(
    ("budget_mib", "top_mib", "label"),
    [(8, 8.8, "budget, 8.0 MiB"), (100, 6.6, "budget, 100.0 MiB (above)")],
)
def test_a_large_budget_does_not_press_the_curves_flat(
    budget_mib: int, top_mib: float, label: str
) -> None:
    stats = MemoryPool(f"{budget_mib}MiB", device="cpu").stats()
    axes = Figure().subplots()
    _picture._finish(axes, replace(stats, peak_mapped_bytes=6 * MIB))
    assert axes.get_ylim() == pytest.approx((0, top_mib))
    assert axes.get_lines()[0].get_label() == label


def _read_all(terminal: int) -> str:
    """What was written on a pseudo-terminal whose other end is closed; it comes in pieces."""
    pieces = []
    with suppress(OSError):  # Linux's end of file
        while piece := os.read(terminal, 1 << 16):
            pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()


def test_a_bar_on_a_terminal_that_does_not_tell_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("t", line_every=1) as told:
            for step in range(1, 4):
                told(step, 3, 0.5)
    printed = _read_all(reader)
    assert "t: 100%" in printed
    assert "3/3" in printed
    assert "loss=0.5000" in printed


def test_lines_come_now_and_then_and_at_the_end() -> None:
    stream = io.StringIO()
    with Progress("t", line_every=2, stream=stream) as told:
        for step in range(1, 6):
            told(step, 5, 0.5)
    assert stream.getvalue().splitlines() == [
        "t: step 2 of 5, loss 0.5000",
        "t: step 4 of 5, loss 0.5000",
        "t: step 5 of 5, loss 0.5000",
    ]
