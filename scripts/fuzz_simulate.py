"""Feeds damaged and hostile traces to ``vramkit simulate`` and looks how it takes them.

A trace is replayed, or refused with status 2 and one line: in little time and memory, without a
traceback, and without anything that a terminal would obey. The first input for which that does not
hold is saved, and the exit status is 1. The inputs follow from the seed, which is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import resource
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _mutants import make_input, make_options

from vramkit import cli, simulate
from vramkit.errors import TraceError

INPUT_SECONDS = 10.0
INPUT_BYTES = 512 << 20
# A loop in C does not come back to Python, where the other limit acts.
_HANG_SECONDS = 60


class LimitExceededError(BaseException):
    """An input took too long. No handler of errors may take it for one of its own."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`LimitExceededError` in the block when it takes longer (main thread only)."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise LimitExceededError(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_limit(size_bytes: int) -> Iterator[None]:
    """Let the block's allocations fail when it takes more addresses than that."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def judge(
    path: Path,
    *options: str,
    seconds: float | None = None,
    memory_bytes: int = INPUT_BYTES,
) -> tuple[int, str | None]:
    """Give a file to ``vramkit simulate``, with options.

    Returns:
        The exit status, and what does not hold, or ``None``.
    """
    try:
        with time_limit(seconds or INPUT_SECONDS):
            wrong = _judge_reading(path, memory_bytes)
            if wrong:
                return -1, wrong
            status, out, error = _run_command([str(path), *options])
    except LimitExceededError as err:
        return -1, f"{err}\n{traceback.format_exc()}"
    except Exception:  # noqa: BLE001 - any exception is what is looked for
        return -1, traceback.format_exc()
    return status, _judge_output(status, out, error, as_json="--json" in options)


def _judge_reading(path: Path, memory_bytes: int) -> str | None:
    """Read it under a limit of memory; a replay reserves many addresses."""
    try:
        with memory_limit(memory_bytes):
            simulate.load_trace(path)
    except TraceError as err:
        if isinstance(err.__cause__, MemoryError):
            return f"it takes more than {memory_bytes >> 20} MiB\n{traceback.format_exc()}"
    return None


def _run_command(arguments: list[str]) -> tuple[int, str, str]:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = cli.main(["simulate", *arguments])
    return status, out.getvalue(), error.getvalue()


def _judge_output(status: int, out: str, error: str, *, as_json: bool) -> str | None:
    if status not in (0, 1, 2):
        return f"exit status {status}"
    refused = status == 2
    told = "error" in json.loads(out) if as_json else not out
    if told != refused or error.count("\n") != refused:
        return f"exit status {status}, but prints {out!r} and as errors {error!r}"
    for line in (out + error).splitlines():
        if not line.isprintable() or len(line) > 8000:
            return f"it prints the line {line!r}"
    return None


def fuzz(seconds: float, seed: str, save: Path) -> int:
    """Try inputs until the time is over or one fails; returns the exit status."""
    end = time.monotonic() + seconds
    tried: Counter[int] = Counter()
    path = save / "input"
    while time.monotonic() < end:
        name = f"{seed}-{tried.total()}"
        path.write_bytes(make_input(name))
        faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True, file=2)
        options = make_options(name)
        status, wrong = judge(path, *options)
        faulthandler.cancel_dump_traceback_later()
        tried[status] += 1
        if wrong:
            kept = save / f"violation-{name}"
            path.rename(kept)
            print(f"input {name} is not taken as documented: {wrong}")
            print(f"repeat it by: vramkit simulate {kept} {' '.join(options)}")
            return 1
    path.unlink(missing_ok=True)
    print(
        f"{tried.total():,} inputs with seed {seed}: {tried[0]:,} complete, {tried[1]:,} run out "
        f"of memory, {tried[2]:,} are refused"
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the fuzzer; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", help="repeats the inputs of an earlier run")
    parser.add_argument("--save", type=Path, help="folder for the input (default: a new one)")
    options = parser.parse_args(arguments)
    seed = options.seed or secrets.token_hex(4)
    save = options.save or Path(tempfile.mkdtemp(prefix="vramkit-fuzz-"))
    save.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}, inputs are written to {save}", flush=True)
    status = fuzz(options.seconds, seed, save)
    if not status and not options.save:
        save.rmdir()
    return status


if __name__ == "__main__":
    sys.exit(main())
