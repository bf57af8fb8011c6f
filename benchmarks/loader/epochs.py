"""Whole loaders: bytes, batches and CPU seconds, beside PyTorch's loader in the same run."""

import gc
import itertools
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks._shared.harness import Recorder, Row, Setting, interleave, say, summarize
from benchmarks.loader.datasets import Images, SmallTensors, Tokens, image_tensors, rows

BENCH = "bench_loader"
WARM_UP = 6


@dataclass(frozen=True)
class Case:
    """A data set, how it is loaded, and how many batches are measured."""

    name: str
    make: Callable[[], Any]
    options: dict[str, Any]
    batches: int
    slow_batches: int


@dataclass(frozen=True)
class Turn:
    """What one contestant did."""

    gigabytes_per_s: float
    batches_per_s: float
    cpu_s_per_gigabyte: float


def cases(*, on_gpu: bool) -> Iterator[Case]:
    """List the cases; sizes fit the machine."""
    images, many = (4096, 1 << 20) if on_gpu else (512, 1 << 17)
    batch = 256 if on_gpu else 64
    options = {"batch_size": batch, "shuffle": True, "drop_last": True}
    for workers in (0, 8) if on_gpu else (0, 2):
        more = {"num_workers": workers, "persistent_workers": workers > 0}
        yield Case(
            f"arrays_images_workers_{workers}", lambda: image_tensors(images), options | more, 60, 8
        )
    for row_bytes in (4096, 256):
        large = options | {"batch_size": 8192 if on_gpu else 1024}
        yield Case(
            f"arrays_rows_{row_bytes}", lambda size=row_bytes: rows(many, size), large, 60, 8
        )
    yield Case(
        "arrays_rows_100_batch_256",
        lambda: rows(many, 100),
        options | {"batch_size": 256},
        300,
        100,
    )
    for workers in (4, 8, 15) if on_gpu else (1, 2):
        more = {"num_workers": workers, "persistent_workers": True, "prefetch_factor": 4}
        yield Case(
            f"python_images_workers_{workers}", lambda: Images(images), options | more, 80, 25
        )
    for tensors in (8, 32, 128):
        yield Case(
            f"small_tensors_{tensors}",
            lambda count=tensors: SmallTensors(count, 4000),
            {"batch_size": None, "num_workers": 8 if on_gpu else 2, "prefetch_factor": 4},
            600,
            100,
        )
    yield Case("tokens", lambda: Tokens(20_000), {"batch_size": 32, "num_workers": 2}, 300, 300)


def to_device(batch: Any, device: str) -> Any:
    """Move a batch as training loops do."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return [to_device(value, device) for value in batch]


def size_of(batch: Any) -> int:
    """Bytes of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    parts = batch.values() if isinstance(batch, dict) else batch
    return sum(size_of(part) for part in parts)


def torch_batches(dataset: Any, options: dict[str, Any], *, on_gpu: bool) -> tuple[Any, Any]:
    """PyTorch's loader; onto the GPU as its documentation says."""
    loader: Any = DataLoader(dataset, pin_memory=on_gpu, **options)
    batches = epochs_of(loader)
    return loader, (to_device(batch, "cuda") for batch in batches) if on_gpu else batches


def own_batches(dataset: Any, options: dict[str, Any], *, on_gpu: bool) -> tuple[Any, Any]:
    """vramkit's loader."""
    import vramkit

    loader: Any = vramkit.DataLoader(dataset, device="cuda" if on_gpu else None, **options)
    return loader, epochs_of(loader)


def epochs_of(loader: Any) -> Iterator[Any]:
    """One epoch after another."""
    while True:
        yield from loader


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(make: Callable[[], tuple[Any, Any]], batches: int, *, on_gpu: bool) -> Turn:
    """Take batches from a fresh loader."""
    before = cpu_seconds()
    loader, delivered = make()
    total = 0
    for batch in itertools.islice(delivered, WARM_UP):
        total += size_of(batch)
    wait(on_gpu=on_gpu)
    begin, measured = time.perf_counter(), 0
    taken = 0
    for batch in itertools.islice(delivered, batches):
        measured += size_of(batch)
        taken += 1
    wait(on_gpu=on_gpu)
    seconds = time.perf_counter() - begin
    del loader, delivered, batch
    gc.collect()
    used = cpu_seconds() - before
    return Turn(measured / seconds / 1e9, taken / seconds, used / ((total + measured) / 1e9))


def wait(*, on_gpu: bool) -> None:
    """Wait for the GPU."""
    if on_gpu:
        torch.cuda.synchronize()


def bench_epochs(recorder: Recorder, *, on_gpu: bool, quick: bool, prefixes: str) -> None:
    """Measure all cases whose names begin with one of ``prefixes``."""
    if on_gpu:
        say(f"link: {link_rate():.1f} GB/s")
    for case in cases(on_gpu=on_gpu):
        if case.name.startswith(tuple(prefixes.split(","))):
            bench_case(recorder, case, on_gpu=on_gpu, rounds=1 if quick else 3)


def link_rate() -> float:
    """GB/s of one pinned buffer that is copied again and again."""
    source = torch.empty(256 << 20, dtype=torch.uint8).pin_memory()
    target = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return 20 * source.nbytes / (time.perf_counter() - begin) / 1e9


def bench_case(recorder: Recorder, case: Case, *, on_gpu: bool, rounds: int) -> None:
    """Measure one case, the contestants by turns."""
    dataset = case.make()
    contestants = {
        "vramkit": lambda: measure(
            lambda: own_batches(dataset, case.options, on_gpu=on_gpu), case.batches, on_gpu=on_gpu
        ),
        "torch": lambda: measure(
            lambda: torch_batches(dataset, case.options, on_gpu=on_gpu),
            case.slow_batches,
            on_gpu=on_gpu,
        ),
    }
    turns = interleave(contestants, rounds=rounds)
    settings: dict[str, Setting] = {
        name: value if isinstance(value, (int, str, type(None))) else str(value)
        for name, value in case.options.items()
    }
    settings |= {"to": "cuda" if on_gpu else "host", "warm_up_batches": WARM_UP}
    for metric, unit in (
        ("gigabytes_per_s", "GB/s"),
        ("batches_per_s", "1/s"),
        ("cpu_s_per_gigabyte", "s/GB"),
    ):
        figures = {
            name: summarize([getattr(turn, metric) for turn in taken])
            for name, taken in turns.items()
        }
        recorder.add(
            Row(
                BENCH,
                case.name,
                metric,
                unit,
                figures["vramkit"],
                settings,
                "torch",
                figures["torch"],
            )
        )
