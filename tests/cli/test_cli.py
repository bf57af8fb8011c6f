import json
import subprocess
import sys
from pathlib import Path

import pytest

import vramkit
from vramkit.cli import main


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vramkit {vramkit.__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vramkit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"vramkit {vramkit.__version__}\n"


def test_the_status_reaches_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vramkit", "simulate", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "this is a directory, not a trace" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["fly"], ["simulate"], ["simulate", "a", "--fly"]])
def test_a_wrong_command_line_is_bad_input(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("usage: vramkit")
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["simulate", "a", "--fly"], "unrecognized arguments: --fly"),
        (["simulate"], "the following arguments are required: TRACE"),
        (["simulate", "a", "--min-capacity", "--capacity", "1x"], "not allowed with argument"),
        (["simulate", "a", "--min"], "unrecognized arguments: --min"),
        (["demo", "--epochs"], "argument --epochs: expected one argument"),
        (["demo", "a"], "unrecognized arguments: a"),
    ],
)
def test_each_subcommand_has_one_usage_text(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([arguments[0], "--help"]) == 0
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert usage.startswith(f"usage: vramkit {arguments[0]} [-h]")
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"{usage}\nvramkit {arguments[0]}: ")
    assert error in told
    assert told.count("usage:") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo", "--seed", "-1"], "--seed: must be from 0 to 18446744073709551615, got -1"),
        (["demo", "--seed", "18446744073709551616"], "--seed: must be from 0 to 184"),
        (["demo", "--seed", "1.5"], "--seed: '1.5' is no integer; give one from 0 to 184"),
        (["demo", "--seed", "1_0"], "--seed: '1_0' is no integer"),
        (["demo", "--seed", "9" * 5000], f"--seed: '{'9' * 40}' is no integer"),
        (["demo", "--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["demo", "--epochs", "-3"], "--epochs: must be at least 1, got -3"),
        (["simulate", "a", "--repeat-step", "0"], "--repeat-step: must be at least 1, got 0"),
        (["simulate", "a", "--repeat-step", "-1"], "--repeat-step: must be at least 1, got -1"),
        (["simulate", "a", "--repeat-step=x"], "--repeat-step: 'x' is no integer; give one at"),
        (["simulate", "a", "--device", "-1"], "--device: must be at least 0, got -1"),
    ],
)
def test_integers_are_checked_before_anything_runs(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"vramkit {arguments[0]}: argument {text}")


def test_no_prefix_comes_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"PK\x03\x04")
    for arguments in (
        ["fly"],
        ["simulate", str(tmp_path / "none")],
        ["simulate", str(tmp_path)],
        ["simulate", str(damaged)],
        ["simulate", "a", "--capacity", "2G"],
        ["simulate", "a", "--page", "3MiB"],
        ["simulate", "a", "--device", "-1"],
        ["demo", "--budget", "2G"],
        ["demo", "--budget", "8EiB"],
        ["demo", "--out", str(tmp_path)],
        ["demo", "--epochs", "1", "--budget", "2MiB", "--out", str(tmp_path / "a.png")],
    ):
        assert main(arguments) in (1, 2)
        last = capsys.readouterr().err.splitlines()[-1]
        prefixes = last.split(": ")[:-1]
        assert prefixes[0].startswith("vramkit")
        assert len(set(prefixes)) == len(prefixes), last
        assert "error:" not in last
        for word in (*prefixes[0].split(), str(tmp_path)):
            assert last.count(word + ":") <= 1, last


def test_what_follows_two_dashes_is_no_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "--", "--repeat-step"]) == 2
    assert main(["simulate", "--", "--json"]) == 2
    printed = capsys.readouterr()
    assert "--repeat-step: there is no such file" in printed.err
    assert "--json: there is no such file" in printed.err
    assert printed.out == ""


def test_the_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "simulate" in capsys.readouterr().out


def test_help_and_version_import_neither_torch_nor_numpy() -> None:
    source = (
        "import sys, vramkit.cli as c\n"
        "assert c.main(['--help']) == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", source], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (KeyboardInterrupt(), 130, ""),
        (
            MemoryError(),
            71,
            "vramkit simulate: the machine has no memory left for this (no details)",
        ),
        (
            RuntimeError("odd"),
            70,
            "vramkit simulate: a defect of vramkit, please report it with the",
        ),
        (OSError("odd"), 70, "vramkit simulate: a defect of vramkit, please report it with the"),
        (vramkit.errors.VramkitError("bad"), 2, "vramkit simulate: bad"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_no_error_has_the_status_of_a_pool_that_runs_out(
    error: BaseException,
    status: int,
    told: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_arguments: object) -> int:
        raise error

    monkeypatch.setattr("vramkit.cli._simulate.run", fail)
    assert main(["simulate", "a", *["--json"] * as_json]) == status
    printed = capsys.readouterr()
    assert (printed.err.splitlines() or [""])[-1].startswith(told)
    assert ("Traceback" in printed.err) == (status == 70)
    if as_json:
        found = json.loads(printed.out)["error"]
        assert found["status"] == status
        assert found["type"] == type(error).__name__
    else:
        assert printed.out == ""
