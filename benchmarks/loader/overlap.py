"""A training step beside the loader: its time divided by that of its compute alone."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks._shared.harness import Recorder, Row, interleave, summarize
from benchmarks.loader.datasets import Images, image_tensors
from benchmarks.loader.epochs import BENCH, own_batches, torch_batches

COMPUTE_MS = 10.0
STEPS = 60
WARM_UP = 10


def make_compute() -> Callable[[], None]:
    """Return matrix work of about ``COMPUTE_MS`` on the GPU."""
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


def step_ms(compute: Callable[[], None], batches: Iterator[Any]) -> float:
    """Milliseconds of a step that takes a batch and computes."""
    for _ in itertools.islice(batches, WARM_UP):
        compute()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in itertools.islice(batches, STEPS):
        compute()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / STEPS * 1e3


def bench_overlap(recorder: Recorder, *, quick: bool) -> None:
    """Measure arrays and worker processes beside compute."""
    compute = make_compute()
    options = {"batch_size": 256, "shuffle": True, "drop_last": True}
    workers = {"num_workers": 8, "persistent_workers": True, "prefetch_factor": 4}
    for name, dataset, more in (
        ("arrays_images", image_tensors(4096), {}),
        ("python_images_workers_8", Images(4096), workers),
    ):
        bench_one(recorder, name, dataset, options | more, compute, rounds=1 if quick else 3)


def bench_one(
    recorder: Recorder,
    name: str,
    dataset: Any,
    options: dict[str, Any],
    compute: Callable[[], None],
    *,
    rounds: int,
) -> None:
    """Measure one data set, by turns with the compute alone."""

    def with_loader(make: Callable[..., tuple[Any, Any]]) -> float:
        loader, batches = make(dataset, options, on_gpu=True)
        try:
            return step_ms(compute, batches)
        finally:
            del loader, batches

    turns = interleave(
        {
            "compute": lambda: step_ms(compute, itertools.repeat(None)),
            "vramkit": lambda: with_loader(own_batches),
            "torch": lambda: with_loader(torch_batches),
        },
        rounds=rounds,
    )
    alone = summarize(turns["compute"])
    settings = {"compute_ms": round(alone.median, 3), "steps": STEPS, "batch_size": 256}
    own = summarize([taken / alone.median for taken in turns["vramkit"]])
    theirs = summarize([taken / alone.median for taken in turns["torch"]])
    row = Row(BENCH, name, "step_over_compute", "x", own, settings, "torch", theirs)
    recorder.add(row)
