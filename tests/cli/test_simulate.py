import json
import os
import pickle
import pty
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.traces import Call, Row, write_npz, write_snapshot

from vramkit.cli import main

MIB = 1 << 20

# Peak 300 MiB; the heaviest step is the middle one.
ROWS: list[Row] = [
    (action, 64, size * MIB, 0)
    for size in (100, 300, 200)
    for action in ("alloc", "free_requested", "free_completed")
]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return str(write_npz(tmp_path / "small.npz", ROWS))


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(capsys.readouterr().out)
    return loaded


def test_a_replay_that_completes(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", trace, "--capacity", "302MiB"]) == 0
    printed = capsys.readouterr()
    assert "trace               small.npz\nresult              completed\n" in printed.out
    assert "ratio               1.0067 (capacity / peak live)" in printed.out
    assert printed.err == ""


def test_a_pool_that_runs_out(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", trace, "--capacity", "250MiB"]) == 1
    assert (
        "The pool ran out at event 3 of the trace, after 2 events: a request of 300.0 MiB on "
        "stream 0 did not fit. Of 250.0 MiB, 0 B were live and 250.0 MiB free; the largest "
        "free block had 250.0 MiB, and stitching could have joined 125 wholly free pages "
        "(250.0 MiB)."
    ) in capsys.readouterr().out


def test_json(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", trace, "--json"]) == 0
    done = report(capsys)
    assert done["completed"] is True
    assert done["events"] == 6
    assert done["peak_live_bytes"] == 300 * MIB
    assert done["capacity_bytes"] == 302 * MIB
    assert done["ratio"] == 302 / 300


def test_json_of_a_pool_that_runs_out(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", trace, "--json", "--capacity", "0.5x"]) == 1
    failed = report(capsys)
    assert failed["completed"] is False
    assert failed["failure"]["event"] == 3
    assert failed["failure"]["requested_bytes"] == 300 * MIB


def test_the_smallest_capacity(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", trace, "--min-capacity", "--json"]) == 0
    assert report(capsys)["capacity_bytes"] == 300 * MIB


def test_pages(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", trace, "--page", "4MiB", "--capacity", "307MiB", "--json"]) == 0
    assert report(capsys)["capacity_bytes"] == 304 * MIB


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        (["--repeat-step", "TRACE"], 12),
        (["TRACE", "--repeat-step"], 12),
        (["--repeat-step", "--json", "TRACE"], 12),
        (["--repeat-step", "3", "TRACE"], 3),
        (["--repeat-step=3", "TRACE"], 3),
        (["TRACE", "--repeat-step", "3"], 3),
    ],
)
def test_repeated_steps(
    trace: str, options: list[str], rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [trace if option == "TRACE" else option for option in options]
    assert main(["simulate", *arguments, *["--json"] * ("--json" not in options)]) == 0
    repeated = report(capsys)
    assert len(repeated["rounds"]) == rounds
    assert repeated["step"] == {"first_event": 2, "end_event": 4}
    assert repeated["events"] == 2 + 2 * rounds


def test_the_device_of_a_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_snapshot(tmp_path / "two.pickle", ROWS, ROWS[:3]))
    assert main(["simulate", path]) == 2
    assert "choose one by --device N" in capsys.readouterr().err
    assert main(["simulate", path, "--device", "1", "--json"]) == 0
    assert report(capsys)["peak_live_bytes"] == 100 * MIB


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--capacity", "12 apples"], "unknown unit 'apples'"),
        (
            ["--capacity", "1MiB"],
            "is 1.0 MiB, less than one page of 2.0 MiB; give at least --capacity 2MiB, or",
        ),
        (["--capacity", "1.01x", "--page", "3MiB"], "power of two"),
        (["--capacity", "1.01"], "has a fraction and no unit; write a number and a unit, such as"),
        (["--capacity", "50%"], "or a multiple of the trace's peak such as '1.01x'"),
        (["--capacity", "-1GiB"], "capacity must be at least 1 byte, got '-1GiB'"),
        (["--capacity", "-1x"], "capacity '-1x' must be more than 0"),
        (["--page", "two"], "--page 'two' cannot be read"),
        (["--page", "1TiB"], "--page must be a power of two from '64KiB' to '1GiB', got '1TiB'"),
        (["--page", "-2MiB"], "--page must be at least 1 byte, got '-2MiB'"),
        (["--repeat-step", "999999999"], "the step of 2 events can be repeated 1 to"),
        # 4 MiB more than 2**64 bytes: it once replayed with 4 MiB.
        (["--capacity", "18446744073713745920"], "the capacity must be 1 to 9,223,372,036,854"),
        (["--capacity", "1e3x"], "cannot be read"),
        (["--capacity", "9" * 5000], "a text of 5,000 characters cannot be read"),
        (["--capacity", "9" * 5000 + "x"], "a text of 5,001 characters cannot be read"),
        (["--capacity", "9" * 40 + "x"], "the capacity must be 1 to 9,223,372,036,854"),
        (["--page", "18446744073711648768"], "--page must be a power of two"),
        (["--page", "9" * 5000], "cannot be read"),
        (["--device", "1"], "holds one device, number 0, not 1"),
    ],
)
def test_bad_options(
    trace: str, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", trace, *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("vramkit simulate: ")
    assert text in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    "options",
    [["--capacity", "12 apples"], ["--page", "1TiB"], ["--page", "1GiB", "--capacity", "1MiB"]],
)
def test_sizes_are_checked_before_the_trace_is_read(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(tmp_path / "none.npz"), *options]) == 2
    assert "there is no such file" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--capacity", "1x", "--min-capacity"], ["--repeat-step=x"], ["--device", "first"]],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_options_that_the_command_line_refuses(
    trace: str, options: list[str], as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", trace, *options, *["--json"] * as_json]) == 2
    if as_json:
        assert report(capsys)["error"]["type"] == "UsageError"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty.npz"),
        (b"text", "neither an .npz archive nor a pickle"),
        (b"PK\x03\x04broken", "damaged"),
        (b"\x80\x04]", "the pickle is refused"),
        (pickle.dumps({"device_traces": []}), "no allocator events"),
        (pickle.dumps([Call(os.system, "touch seen")]), "instruction STACK_GLOBAL"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_files_that_are_no_trace(
    content: bytes,
    text: str,
    as_json: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "empty.npz"
    path.write_bytes(content)
    assert main(["simulate", str(path), *["--json"] * as_json]) == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert str(path) in printed.err
    assert "Traceback" not in printed.err
    if as_json:
        assert text in json.loads(printed.out)["error"]["message"]
    else:
        assert printed.out == ""
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(tmp_path / "none.npz")]) == 2
    assert "there is no such file; check the path" in capsys.readouterr().err


def test_a_terminal_sees_progress(trace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["simulate", trace]) == 0
        stream.flush()
        shown = ""
        while not shown.endswith("\x1b[K"):
            shown += os.read(controller, 4096).decode()
    os.close(controller)
    assert shown == "\r[" + "#" * 30 + "] 100% of 6 events\r\x1b[K"
