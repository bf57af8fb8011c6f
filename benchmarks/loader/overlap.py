"""A training step beside the loader: its time beside that of its compute alone.

On a GPU the compute is matrix work. Without one it is a sleep of the same length, as if another
device computed: all cores stay free for the loader.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks._shared.harness import Recorder, Row, Setting, interleave, summarize
from benchmarks.loader.cases import Case, array_images, chosen, python_images
from benchmarks.loader.contestants import Maker, own_loader, torch_loader
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
        if time.perf_counter() - begin >= window.seconds:
            break
    wait(on_gpu=on_gpu)
    return (time.perf_counter() - begin) / taken * 1e3


def bench_overlap(
    recorder: Recorder, *, on_gpu: bool, rounds: int, window_s: float, prefixes: str
) -> None:
    """Measure arrays and worker processes beside compute."""
    compute = make_compute(on_gpu=on_gpu)
    workers = 8 if on_gpu else 2
    found = [array_images(0, on_gpu=on_gpu), python_images(workers, on_gpu=on_gpu)]
    for case in chosen(iter(found), prefixes):
        window = Window(warm_up_batches(case.options), window_s)
        turns = take_turns(case, compute, window, on_gpu=on_gpu, rounds=rounds)
        record(recorder, case, turns, window, on_gpu=on_gpu)


def take_turns(
    case: Case, compute: Callable[[], None], window: Window, *, on_gpu: bool, rounds: int
) -> dict[str, list[Steps]]:
    """Measure one data set with each loader, by turns with the compute alone."""
    dataset = case.make()

    def with_loader(make: Maker) -> float:
        loader, batches = make(dataset, case.options, on_gpu=on_gpu)
        try:
            return step_ms(compute, batches, window, on_gpu=on_gpu)
        finally:
            batches.close()
            del loader, batches
            gc.collect()

    def alone() -> float:
        return step_ms(compute, itertools.repeat(None), window, on_gpu=on_gpu)

    makers: dict[str, Maker] = {"vramkit": own_loader, "torch": torch_loader}
    contestants = {name: lambda make=make: with_loader(make) for name, make in makers.items()}
    turns = interleave({"compute": alone} | contestants, rounds=rounds)
    return {
        name: [Steps(*both) for both in zip(turns[name], turns["compute"], strict=True)]
        for name in makers
    }


def record(
    recorder: Recorder,
    case: Case,
    turns: dict[str, list[Steps]],
    window: Window,
    *,
    on_gpu: bool,
) -> None:
    """Record what a step takes and what of it waits for data."""
    alone = summarize([step.compute_ms for step in turns["vramkit"]])
    settings: dict[str, Setting] = settings_of(case.options, window, on_gpu=on_gpu)
    settings |= {"compute_ms": round(alone.median, 3)}
    for peer in [name for name in turns if name != "vramkit"]:
        for metric, unit, value in (
            ("step_over_compute", "x", "over_compute"),
            ("exposed_ms_a_step", "ms", "exposed_ms"),
        ):
            own, theirs = (
                summarize([getattr(step, value) for step in turns[name]])
                for name in ("vramkit", peer)
            )
            recorder.add(Row(BENCH, case.name, metric, unit, own, settings, peer, theirs))
