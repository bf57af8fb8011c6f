import subprocess
import sys
from pathlib import Path

import pytest

import vramkit
from vramkit.cli import main


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
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
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: vramkit" in capsys.readouterr().err


def test_the_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    assert "simulate" in capsys.readouterr().out


def test_help_and_version_import_neither_torch_nor_numpy() -> None:
    source = (
        "import sys, contextlib, vramkit.cli as c\n"
        "with contextlib.suppress(SystemExit): c.main(['--help'])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", source], check=True, stdout=subprocess.DEVNULL)


def test_an_interruption_leaves_quietly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(_arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("vramkit.cli._simulate.run", interrupt)
    assert main(["simulate", str(tmp_path)]) == 130
