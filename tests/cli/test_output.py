"""What is written reaches its reader, or the status says that it did not."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from helpers.traces import Row, write_npz

from vramkit.cli import main
from vramkit.cli._output import note, printable, write_json

COMMAND = [sys.executable, "-m", "vramkit"]
FULL = Path("/dev/full")
ROWS: list[Row] = [
    (action, 64, 300 << 20, 0) for action in ("alloc", "free_requested", "free_completed")
]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return str(write_npz(tmp_path / "small.npz", ROWS))


def run(*arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run([*COMMAND, *arguments], text=True, check=False, timeout=120, **streams)


def closed_pipe() -> IO[bytes]:
    """The end for writing of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "wb")


OUTPUTS = [["--help"], ["--version"], ["simulate", "--help"], ["simulate", "TRACE"]]
OUTPUTS += [["simulate", "TRACE", "--json"], ["simulate", "none.npz", "--json"]]


@pytest.mark.parametrize("arguments", OUTPUTS)
def test_a_reader_that_has_gone_ends_the_command_quietly(arguments: list[str], trace: str) -> None:
    with closed_pipe() as pipe:
        done = run(*[trace if each == "TRACE" else each for each in arguments], stdout=pipe)
    assert done.returncode == 141
    assert [line for line in done.stderr.splitlines() if "no such file" not in line] == []


@pytest.mark.parametrize("arguments", OUTPUTS)
@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(arguments: list[str], trace: str) -> None:
    with FULL.open("wb") as full:
        done = run(*[trace if each == "TRACE" else each for each in arguments], stdout=full)
    assert done.returncode == 74
    assert done.stderr.splitlines()[-1] == (
        "vramkit: standard output cannot be written: No space left on device; free space there, "
        "or write elsewhere"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_picture_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "full.png").symlink_to(FULL)
    done = run("demo", "--epochs", "1", "--json", "--out", str(tmp_path / "full.png"))
    assert done.returncode == 74, done.stderr
    assert "the picture cannot be written ([Errno 28] No space left on device)" in done.stderr
    assert json.loads(done.stdout)["error"]["status"] == 74


@pytest.mark.parametrize("target", ["pipe", "full", "closed"])
def test_notes_that_nobody_can_read_change_no_status(target: str, trace: str) -> None:
    redirection = {"pipe": None, "full": "2>/dev/full", "closed": "2>&-"}[target]
    for arguments, status in (([trace], 0), ([trace, "--capacity", "4MiB"], 1), (["none"], 2)):
        command = [*COMMAND, "simulate", *arguments]
        if redirection is None:
            with closed_pipe() as pipe:
                done = run("simulate", *arguments, stderr=pipe)
        else:
            shell = ["sh", "-c", f'"$@" {redirection}', "sh", *command]
            done = subprocess.run(shell, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == status, (target, arguments)
        assert bool(done.stdout) == (status < 2)


def test_the_demo_s_progress_may_be_lost(tmp_path: Path) -> None:
    with closed_pipe() as pipe:
        out = str(tmp_path / "a.png")
        done = run("demo", "--epochs", "1", "--json", "--out", out, stderr=pipe)
    assert done.returncode == 1  # the accuracy of one epoch
    assert json.loads(done.stdout)["steps"] == 12


def test_standard_output_that_was_closed_is_told(trace: str) -> None:
    shell = ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "simulate", trace]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 74
    assert "standard output cannot be written: Bad file descriptor" in done.stderr


def test_names_cannot_command_the_terminal_or_break_the_output(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\x1b[2Jb\xff.npz")
    path = write_npz(tmp_path / "plain.npz", ROWS).rename(tmp_path / name)
    done = run("simulate", str(path))
    assert done.returncode == 0, done.stderr
    assert r"a\x1b[2Jb\udcff.npz" in done.stdout
    done = run("simulate", str(tmp_path / f"no{name}"))
    assert done.returncode == 2
    assert r"noa\x1b[2Jb\udcff.npz: there is no such file" in done.stderr


def test_what_an_encoding_lacks_is_escaped() -> None:
    assert printable("é 1\t2\n\x9b\x00", io.TextIOWrapper(io.BytesIO(), encoding="ascii")) == (
        "\\xe9 1\t2\n\\x9b\\x00"
    )
    assert printable("é", io.StringIO()) == "é"


def test_json_has_no_numbers_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"loss": float("nan"), "all": [float("inf"), 1.5], "deep": {"x": -float("inf")}})
    assert json.loads(capsys.readouterr().out) == {
        "loss": None,
        "all": [None, 1.5],
        "deep": {"x": None},
    }


def test_a_stream_without_a_file_below_may_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, _: str, /) -> int:
            raise OSError(28, "full")

    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", Broken())
    note("lost")
    assert main(["--version"]) == 74
