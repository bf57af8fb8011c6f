"""A training step beside the loader: its time beside that of its compute alone.

On a GPU the compute is matrix work. Without one it is a sleep of the same length, as if another
device computed: all cores stay free for the loader.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks._shared.harness import Recorder, Row, Setting, interleave, summarize
from benchmarks.loader.cases import Case, array_images, chosen, python_images, usual_workers
from benchmarks.loader.contest import absence, contest, running
from benchmarks.loader.contestants import Maker
from benchmarks.loader.epochs import BENCH, settings_of
from benchmarks.loader.window import Window, wait, warm_up, warm_up_batches

COMPUTE_MS = 10.0


@dataclass(frozen=True)
class Steps:
    """Milliseconds of a step with a loader, and of the compute alone in the same round."""

    with_loader_ms: float
    compute_ms: float

    @property
    def exposed_ms(self) -> float:
        """Milliseconds a step that waited for data."""
        return self.with_loader_ms - self.compute_ms

    @property
    def over_compute(self) -> float:
        """The step's time as a multiple of that of the compute."""
        return self.with_loader_ms / self.compute_ms


def make_compute(*, on_gpu: bool) -> Callable[[], None]:
    """Return work of about ``COMPUTE_MS``."""
    if not on_gpu:
        return lambda: time.sleep(COMPUTE_MS / 1e3)
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)

    def work(times: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(times):
            torch.mm(matrix, matrix)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    work(50)
    times = max(1, round(200 * COMPUTE_MS / 1e3 / work(200)))

    def compute() -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    return compute


def step_ms(
    compute: Callable[[], None], batches: Iterator[Any], window: Window, *, on_gpu: bool
) -> float:
    """Milliseconds of a step that takes a batch and computes."""
    warm_up(batches, window, compute)
    wait(on_gpu=on_gpu)
    begin, taken = time.perf_counter(), 0
    for _ in batches:
        compute()
        taken += 1
        if window.is_over(taken, time.perf_counter() - begin):
            break
    wait(on_gpu=on_gpu)
    return (time.perf_counter() - begin) / taken * 1e3


def bench_overlap(
    recorder: Recorder, *, on_gpu: bool, rounds: int, window_s: float, prefixes: str
) -> None:
    """Measure arrays and worker processes beside compute."""
    compute = make_compute(on_gpu=on_gpu)
    workers = usual_workers(on_gpu=on_gpu)
    found = [array_images(0, on_gpu=on_gpu), python_images(workers, on_gpu=on_gpu)]
    for case in chosen(iter(found), prefixes):
        window = Window(warm_up_batches(case.options), window_s)
        bench_case(recorder, case, compute, window, on_gpu=on_gpu, rounds=rounds)


def bench_case(
    recorder: Recorder,
    case: Case,
    compute: Callable[[], None],
    window: Window,
    *,
    on_gpu: bool,
    rounds: int,
) -> None:
    """Measure one dataset with each loader, by turns with the compute alone."""
    dataset = case.make()
    makers, absent = contest(case, dataset, on_gpu=on_gpu)

    def with_loader(make: Maker) -> float:
        with running(make, dataset, case.options, on_gpu=on_gpu) as batches:
            return step_ms(compute, batches, window, on_gpu=on_gpu)

    def alone() -> float:
        return step_ms(compute, itertools.repeat(None), window, on_gpu=on_gpu)

    contestants = {name: partial(with_loader, make) for name, make in makers.items()}
    turns = interleave({"compute": alone} | contestants, rounds=rounds)
    steps = {
        name: [Steps(*both) for both in zip(turns[name], turns["compute"], strict=True)]
        for name in makers
    }
    settings = settings_of(case.options, window, on_gpu=on_gpu) | absence(absent)
    settings |= {"compute_ms": round(summarize(turns["compute"]).median, 3)}
    record(recorder, case.name, steps, settings)


def record(
    recorder: Recorder,
    name: str,
    turns: Mapping[str, list[Steps]],
    settings: Mapping[str, Setting],
) -> None:
    """Record what a step takes and what of it waits for data."""
    for peer in [name for name in turns if name != "vramkit"]:
        for metric, unit, value in (
            ("step_over_compute", "x", "over_compute"),
            ("exposed_ms_a_step", "ms", "exposed_ms"),
        ):
            own, theirs = (
                summarize([getattr(step, value) for step in turns[each]])
                for each in ("vramkit", peer)
            )
            recorder.add(Row(BENCH, name, metric, unit, own, settings, peer, theirs))
