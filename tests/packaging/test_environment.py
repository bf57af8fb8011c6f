"""The scripts behind ``make`` choose an interpreter and explain what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_INTERPRETER = ROOT / "scripts" / "interpreter.sh"
_SETUP = ROOT / "scripts" / "setup_env.sh"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with a shell's needs and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "dirname", "pwd"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def _run(script: Path, *arguments: str, path: Path, torch: str = "") -> tuple[int, str, str]:
    environment = {"PATH": str(path), "HOME": os.environ.get("HOME", "/"), "TORCH": torch}
    done = subprocess.run(
        [str(script), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def _fake_python(folder: Path, torch_version: str, status: int = 0) -> str:
    python = folder / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"  */torch_version.py) echo '{torch_version}'; exit {status} ;;\n"
        f"  -c) echo {python} ;;\n"
        "  *) exit 1 ;;\n"
        "esac\n"
    )
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize("torch", ["", "2.12", "2.12.0"])
def test_an_active_environment_with_torch_is_used(tools: Path, torch: str) -> None:
    python = _fake_python(tools, "2.12.0+cpu")
    assert _run(_INTERPRETER, path=tools, torch=torch) == (0, python, "")


@pytest.mark.parametrize(
    ("installed", "status", "wanted"),
    [("", 1, ""), ("2.12.0+cpu", 0, "2.13.0"), ("2.13.0", 2, "")],
    ids=["no torch", "another torch", "externally managed"],
)
def test_otherwise_the_projects_own(tools: Path, installed: str, status: int, wanted: str) -> None:
    _fake_python(tools, installed, status)
    own = str(ROOT / ".venv" / "bin" / "python")
    assert _run(_INTERPRETER, path=tools, torch=wanted) == (0, own, "")


def test_no_compiler_is_one_line(tools: Path) -> None:
    status, _, error = _run(_SETUP, _fake_python(tools, "2.13.0"), path=tools)
    assert status == 1
    assert error == (
        "error: no C++ compiler (g++) in PATH; install one (Debian: apt-get install g++) or set CXX"
    )


def test_no_python_is_one_line(tools: Path, tmp_path: Path) -> None:
    (tools / "g++").symlink_to("/bin/sh")
    project = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", project / "scripts")
    own = str(project / ".venv" / "bin" / "python")
    status, _, error = _run(project / "scripts" / "setup_env.sh", own, path=tools)
    assert status == 1
    assert error == (
        "error: no Python 3.11 or later in PATH; install python3.12 "
        "(Debian: apt-get install python3 python3-venv)"
    )


def test_no_pip_is_one_line(tools: Path) -> None:
    (tools / "g++").symlink_to("/bin/sh")
    python = _fake_python(tools, "2.13.0")
    status, _, error = _run(_SETUP, python, path=tools)
    assert status == 1
    assert error == (
        f"error: {python} has no pip; run: {python} -m ensurepip, or activate another environment"
    )
