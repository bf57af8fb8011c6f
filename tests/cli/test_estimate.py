"""``vramkit estimate``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vramkit.cli import main

_PROGRAM = """
import torch

def make_step(batch_size=4096):
    model = torch.nn.Linear(256, 256).to("cuda")
    x = torch.randn(batch_size, 256, device="cuda")
    return lambda: model(x).sum().backward()

def broken():
    raise KeyError("data")

def exits():
    raise SystemExit(0)

def nothing():
    return lambda: torch.ones(3)

def talks():
    print("a line of the program")
    return make_step()

def branching():
    x = torch.randn(8, device="cuda")
    return lambda: bool(x.sum() > 0)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "program_to_estimate.py"
    path.write_text(_PROGRAM, encoding="utf-8")
    return path


def test_a_table_and_the_verdict(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", f"{program}:make_step", "--budget", "a100-80gb"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 steps on NVIDIA H100")
    assert "The step fits the budget." in out


def test_a_program_that_parses_arguments(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with program.open("a", encoding="utf-8") as file:
        file.write(
            "\ndef main():\n"
            "    import argparse, sys\n"
            "    parser = argparse.ArgumentParser()\n"
            "    parser.add_argument('--width', type=int, default=256)\n"
            "    print(parser.prog, parser.parse_args())\n"
            "    return make_step()\n"
        )
    before = list(sys.argv)
    assert main(["estimate", f"{program}:main"]) == 0
    assert "program_to_estimate.py Namespace(width=256)" in capsys.readouterr().err
    assert sys.argv == before


@pytest.mark.filterwarnings("ignore:Attempted to get default timeout")
def test_ranks_of_a_step(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with program.open("a", encoding="utf-8") as file:
        file.write(
            "def ranks():\n"
            "    import torch.distributed as dist\n"
            "    dist.init_process_group('nccl')\n"
            "    x = torch.zeros(dist.get_world_size(), device='cuda')\n"
            "    return lambda: dist.all_reduce(x)\n"
        )
    assert main(["estimate", f"{program}:ranks", "--world-size", "8"]) == 0
    assert "NCCL's memory for the process groups (1 of up to 8 ranks)" in capsys.readouterr().out
    assert main(["estimate", f"{program}:ranks"]) == 2
    assert "--world-size" in capsys.readouterr().err
    assert main(["estimate", "--config", "gpt2", "--trace", "--world-size", "2"]) == 2
    assert "--world-size is for a step" in capsys.readouterr().err


def test_the_status_says_that_it_does_not_fit(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["estimate", "program_to_estimate:make_step", "--budget", "1GiB", "--json"]
    assert main([*command, "--advice", "--steps", "1"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["fits"], report["advice"]["largest_batch"]) == (False, 0)


def test_files_are_written(program: Path, tmp_path: Path) -> None:
    page, events = tmp_path / "a.html", tmp_path / "a.npz"
    command = ["estimate", f"{program}:make_step", "--timeline", str(page)]
    assert main([*command, "--events", str(events)]) == 0
    assert page.stat().st_size > 1000
    assert main(["simulate", str(events), "--min-capacity"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.py:make_step"], "there is no file 'no.py' in "),
        (["nowhere.to.be:found"], "no module named 'nowhere.to.be'"),
        (["program_to_estimate.py"], "names no function; write FILE:FUNCTION"),
        (["program_to_estimate.py:absent"], "has no function 'absent'"),
        (["program_to_estimate.py:broken"], "broken raised KeyError: 'data'"),
        (["program_to_estimate.py:branching"], "reads a value that depends on the data"),
        (["program_to_estimate.py:make_step", "--target", "voodoo2"], "no GPU named 'voodoo2'"),
        (["program_to_estimate.py:make_step", "--advice"], "--advice needs a --budget"),
    ],
)
def test_wrong_input_has_status_2(
    program: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_program_that_ends_the_process_does_not_pass_for_one_that_fits(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", f"{program}:exits", "--budget", "h100", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["status"], error["type"]) == (2, "SystemExit")
    assert "exits called sys.exit(0) before it was done" in error["message"]


def test_what_the_program_prints_is_no_part_of_the_report(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", f"{program}:talks", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["target"] == "h100"
    assert "a line of the program" in printed.err


@pytest.mark.parametrize("option", ["--timeline", "--events"])
def test_a_file_that_cannot_be_written_is_no_fault_of_the_program(
    option: str, program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nowhere" / "a.html"
    assert main(["estimate", f"{program}:make_step", option, str(path)]) == 2
    errors = capsys.readouterr().err
    assert "a.html' cannot be written: No such file or directory; write elsewhere" in errors
    assert "Traceback" not in errors


def test_a_step_that_uses_no_gpu_does_not_pass_for_one_that_fits(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", f"{program}:nothing", "--budget", "24GiB"]) == 2
    assert f"{program}:nothing: the step allocates nothing on 'cuda', so" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_fault_of_the_program(program: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "vramkit", "estimate", f"{program}:make_step"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


def test_a_timeline_that_cannot_be_drawn_is_refused_before_the_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["estimate", "no_such_file.py:make_step", "--timeline", "a.txt"]) == 2
    assert "an .html or .png file, not 'a.txt'" in capsys.readouterr().err


def test_a_budget_of_another_gpu_is_told(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", f"{program}:make_step", "--budget", "rtx4090"]) == 0
    assert "fits the budget. The budget is the memory of rtx4090; all" in capsys.readouterr().out
    assert main(["estimate", "--config", "llama-3.2-1b", "--budget", "rtx4090"]) == 0
    assert "- The budget is the memory of rtx4090; all" in capsys.readouterr().out


def test_bad_usage_is_told_in_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "train.py:make_step", "--steps", "0"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "usage: vramkit estimate [-h] [options] FILE:FUNCTION"
    assert told[2:] == ["vramkit estimate: argument --steps: must be at least 1, got 0"]
