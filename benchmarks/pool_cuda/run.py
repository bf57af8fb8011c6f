"""Runs measurements, each in a child process, within a budget of time.

Children are started some at a time and import what they need all at once; then they measure, one at
a time, with the machine to themselves. Those of a group take turns, where they give way in between
and there is memory for all of them at once.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from benchmarks._shared.harness import say
from benchmarks._shared.provenance import ROOT
from benchmarks.pool_cuda.plan import (
    pending,
)
from benchmarks.pool_cuda.spec import (
    TURN_ENDS,
    Choice,
    Group,
    Measurement,
    Result,
    takes_turns,
)
from benchmarks.pool_cuda.state import State

AT_ONCE = 8
LONGEST_S = 150.0
UNKNOWN_S = {"loop": 30.0, "host": 8.0, "startup": 6.0}
_STDERR_TAIL = 2000
CONF_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
CONF = {"expandable": "expandable_segments:True", "async": "backend:cudaMallocAsync"}


class OutOfTimeError(Exception):
    """The budget ended before the measurement did."""


@dataclass(frozen=True)
class Budget:
    """The time that a run may take, from ``start`` on; a clock for tests."""

    seconds: float
    start: float
    clock: Callable[[], float] = time.monotonic

    def left_s(self) -> float:
        """Return what is left."""
        return self.seconds - (self.clock() - self.start)


class Contestant(Protocol):
    """A child process that is about to measure."""

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until it has imported what it needs."""

    def turn(self, timeout_s: float) -> Result | None:
        """Let it measure until it gives way (None), or has ended."""

    def stop(self) -> None:
        """End it, whatever it does."""


class Child:
    """A process of worker.py."""

    def __init__(self, measurement: Measurement) -> None:
        """Start it; it begins to import."""
        spec = measurement.spec
        conf = dict.fromkeys(CONF_NAMES, CONF.get(spec.allocator, ""))
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by stop()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.pool_cuda.worker",
                json.dumps(spec.as_json()),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **conf},
        )

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for its word; one that died says so when it is asked to measure.

        Raises:
            OutOfTimeError: it is not ready in time.
        """
        self._line(timeout_s)

    def _line(self, timeout_s: float) -> bytes:
        """Read a line, of which a child writes one at a time; nothing when it has died."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, timeout_s))
        if not readable:
            raise OutOfTimeError
        return self._process.stdout.readline()

    def turn(self, timeout_s: float) -> Result | None:
        """Let it measure; a process that dies has failed, and says why.

        Raises:
            OutOfTimeError: it took longer than ``timeout_s``.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it left on its way out is read below
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        line = self._line(timeout_s)
        if line == f"{TURN_ENDS}\n".encode():
            return None
        try:
            status = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise OutOfTimeError from None
        if not line.strip():
            return {"ok": False, "crash": f"status {status}: {self._complaint()}"}
        result: dict[str, object] = {"ok": True} | json.loads(line)
        if status != 0:
            # The figures count, but a process that cannot end is a defect.
            result["exit"] = f"status {status}: {self._complaint()}"
        return result

    def _complaint(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-_STDERR_TAIL:]

    def stop(self) -> None:
        """Kill the process if it lives."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def run(
    state: State,
    choice: Choice,
    budget: Budget,
    start: Callable[[Measurement], Contestant] = Child,
) -> bool:
    """Measure until all is done or the time is up; tells whether all is done."""
    while groups := pending(state, choice):
        if not _run_some(state, _first(groups), budget, start):
            return False
    return True


def _first(groups: Sequence[Group]) -> list[Group]:
    taken: list[Group] = []
    for group in groups:
        if taken and sum(map(len, taken)) + len(group) > AT_ONCE:
            break
        taken.append(group)
    return taken


def _run_some(
    state: State,
    groups: Sequence[Group],
    budget: Budget,
    start: Callable[[Measurement], Contestant],
) -> bool:
    """Run groups of which none needs another's results; False when the time is up."""
    if _expected_s(state, groups[0]) > budget.left_s():
        return False
    children = {each.key: start(each) for group in groups for each in group}
    try:
        for child in children.values():
            child.wait_ready(budget.left_s())
        for group in groups:
            # A group begun is a group ended in one run, or it must be made again as a whole.
            if _expected_s(state, group) > budget.left_s():
                return False
            _measure(state, group, children, budget)
    except OutOfTimeError:
        return False
    finally:
        for child in children.values():
            child.stop()
    return True


def _expected_s(state: State, group: Group) -> float:
    return sum(state.expected_s(each, UNKNOWN_S[each.spec.kind]) for each in group)


def _measure(
    state: State, group: Group, children: Mapping[str, Contestant], budget: Budget
) -> None:
    """Let a group take turns, each time begun by another, until all of it has ended.

    Where there is no memory for all at once, a turn is the whole of a loop.
    """
    results: dict[str, Result] = {}
    wall_s = dict.fromkeys((each.key for each in group), 0.0)
    waiting = [each.key for each in group]
    gives_way = takes_turns(group)
    while waiting:
        for key in tuple(waiting):
            began = budget.clock()
            result = _turn(children[key], budget)
            while result is None and not gives_way:
                result = _turn(children[key], budget)
            wall_s[key] += budget.clock() - began
            if result is not None:
                results[key] = result
                waiting.remove(key)
        waiting = waiting[1:] + waiting[:1]
    for each in group:
        state.add(each, results[each.key], wall_s[each.key])
        say(f"{each.key:48} {outcome(results[each.key]):40} {wall_s[each.key]:6.1f} s")


def _turn(child: Contestant, budget: Budget) -> Result | None:
    left_s = budget.left_s()
    try:
        return child.turn(min(LONGEST_S, left_s))
    except OutOfTimeError:
        if left_s < LONGEST_S:
            raise
        child.stop()
        return {"ok": False, "crash": f"took longer than {LONGEST_S:g} s"}


def outcome(result: Result) -> str:
    """Put a result into a few words."""
    if "crash" in result:
        return "CRASHED " + str(result["crash"])[-200:].replace("\n", " | ")
    if not result["ok"]:
        return f"out of memory at step {result.get('steps_done')}"
    words = "" if "total_s" not in result else f"{result['total_s']:.3f} s"
    return words + (" BAD EXIT" if "exit" in result else "")
