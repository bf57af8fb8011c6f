"""Finds the compilers and runs them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ._errors import BuildError

_T = TypeVar("_T")
_CXX_NAMES = ("g++", "c++", "clang++")


def find_cxx() -> str:
    """Return the C++ compiler: ``$CXX``, else the first of g++, c++, clang++.

    Raises:
        BuildError: None is found.
    """
    named = os.environ.get("CXX", "").strip()
    for name in [named] if named else _CXX_NAMES:
        found = shutil.which(name)
        if found:
            return found
    looked_for = named or ", ".join(_CXX_NAMES)
    raise BuildError(
        f"vramkit needs a C++20 compiler and found none (looked for {looked_for} in PATH); install "
        "one (Debian: apt-get install g++) or name one in the variable CXX"
    )


def find_nvcc() -> str | None:
    """Return nvcc from ``$CUDA_HOME``, PATH or /usr/local/cuda, or None."""
    home = os.environ.get("CUDA_HOME", "").strip()
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def job_count() -> int:
    """Return how many compilers may run at once: ``$VRAMKIT_JOBS``, else the usable cores."""
    text = os.environ.get("VRAMKIT_JOBS", "").strip()
    if not text:
        return len(os.sched_getaffinity(0))
    if not text.isdecimal() or int(text) == 0:
        raise BuildError(f"VRAMKIT_JOBS must be a positive number, got {text!r}")
    return int(text)


def run(command: Sequence[str], *, scratch: Path | None = None) -> str:
    """Run a command and return what it printed.

    Args:
        command: The program and its arguments.
        scratch: A folder that only this user can enter. It takes the place of $TMPDIR, as a
            compiler reads its temporary files back, and what the command makes is this user's
            alone.

    Raises:
        BuildError: It failed; the text holds the command and its output.
    """
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=None if scratch is None else os.environ | {"TMPDIR": str(scratch)},
        umask=-1 if scratch is None else 0o077,
    )
    if done.returncode != 0:
        raise BuildError(
            f"command failed with status {done.returncode}: {shlex.join(command)}\n{done.stdout}"
        )
    return done.stdout


def for_each(action: Callable[[_T], object], items: Iterable[_T]) -> None:
    """Apply an action to all items, several at a time; the first failure is raised."""
    with ThreadPoolExecutor(max_workers=job_count()) as pool:
        list(pool.map(action, items))
