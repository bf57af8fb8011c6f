"""A child process of the CUDA benchmark: makes one measurement when its parent says so.

usage: python -m benchmarks.pool_cuda.worker SPEC

SPEC is the JSON object of a Measurement. The process imports what it needs, prints "ready", waits
for a line on standard input, and prints its result: one JSON object. A loop gives way after some
steps: it prints "turn", and waits for another line.
"""

import contextlib
import gc
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TextIO

import torch

from benchmarks._shared.provenance import measure_this_tree
from benchmarks.pool_cuda.allocators import Books, allocator_scope, is_out_of_memory
from benchmarks.pool_cuda.loops import LOOPS, Loop
from benchmarks.pool_cuda.micro import host_cost, start_up
from benchmarks.pool_cuda.spec import (
    EQUAL_CYCLE,
    EQUAL_STEPS,
    TURN_ENDS,
    TURN_STEPS,
    Spec,
)
from benchmarks.pool_cuda.text_loops import Step

GiveWay = Callable[[], None]


@dataclass
class Course:
    """How the steps of a loop went; step times are the GPU's, from one step's end to the next's."""

    ok: bool = False
    steps_done: int = 0
    total_s: float = 0.0
    steps_ms: list[float] = field(default_factory=list)
    first_loss: float | None = None
    last_loss: float | None = None
    calls_by_step: list[int] = field(default_factory=list)
    out_of_memory: str | None = None


def steps_of(loop: Loop, mode: str) -> tuple[Step, int]:
    """Build a loop; in the mode "equal" each step is one and the same cycle of sizes."""
    draw = random.Random(loop.seed)
    step = loop.make(draw)
    if mode != "equal":
        return step, loop.steps

    def equal_step() -> torch.Tensor:
        draw.seed(loop.seed)
        for _ in range(EQUAL_CYCLE - 1):
            step()
        return step()

    return equal_step, EQUAL_STEPS


def run_steps(
    course: Course, step: Step, count: int, spec: Spec, books: Books, give_way: GiveWay
) -> None:
    """Run the loop; the host waits for the GPU after the first step and at the end of a turn only.

    In the mode "synced" it waits after every step, so that nothing is alive longer than it must be.
    """
    for first in range(0, count, TURN_STEPS):
        if first > 0:
            give_way()
        steps = min(TURN_STEPS, count - first)
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        torch.cuda.synchronize()
        ends[0].record()
        start = time.perf_counter()
        for end in ends[1:]:
            loss = step()
            end.record()
            course.steps_done += 1
            if course.first_loss is None:
                course.first_loss = loss.item()
            if spec.mode == "synced":
                torch.cuda.synchronize()
            elif spec.mode == "equal" and books.mapping_calls is not None:
                course.calls_by_step.append(books.mapping_calls())
        torch.cuda.synchronize()
        course.total_s += time.perf_counter() - start
        course.steps_ms += [a.elapsed_time(b) for a, b in itertools.pairwise(ends)]
    course.last_loss = loss.item()
    course.ok = True


def run_loop(spec: Spec, give_way: GiveWay) -> dict[str, object]:
    """Run one loop under one allocator."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(0)
    course = Course()
    with allocator_scope(spec) as books:
        try:
            step, count = steps_of(LOOPS[spec.loop], spec.mode)
            run_steps(course, step, count, spec, books, give_way)
        except Exception as err:  # every allocator and library has its own
            if not is_out_of_memory(err):
                raise
            course.out_of_memory = str(err)[:2000]
        return asdict(course) | books.figures()


def measure(spec: Spec, give_way: GiveWay) -> dict[str, object]:
    """Make the measurement that is asked for."""
    if spec.kind == "loop":
        return run_loop(spec, give_way)
    return {"host": host_cost, "startup": start_up}[spec.kind](spec)


def prepare(spec: Spec) -> None:
    """Import what takes long to import, so that it costs no time on the GPU."""
    if spec.kind == "loop":
        import_module("torch._dynamo")  # the first optimizer would
        if needed := LOOPS[spec.loop].needs:
            import_module(needed)
    if spec.allocator == "vramkit":
        measure_this_tree()
        import_module("vramkit.pool")
    if spec.allocator == "rmm":
        import_module("rmm.allocators.torch")


def _own_output() -> TextIO:
    # What libraries print goes to standard error: the parent reads lines that are ours.
    ours = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return ours


def main() -> None:
    """Get ready, wait for the word, measure."""
    with contextlib.closing(_own_output()) as output:
        spec = Spec(**json.loads(sys.argv[1]))
        prepare(spec)
        output.write("ready\n")
        if not sys.stdin.readline():
            return

        def give_way() -> None:
            output.write(f"{TURN_ENDS}\n")
            if not sys.stdin.readline():
                sys.exit("the parent is gone")

        result = measure(spec, give_way)
        gc.collect()
        output.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
