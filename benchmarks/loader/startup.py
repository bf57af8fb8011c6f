"""Seconds until the first batch, and from the last batch of an epoch to the next one's first."""

import gc
import time
from functools import partial
from typing import Any

from benchmarks._shared.harness import Recorder, Row, interleave, summarize
from benchmarks.loader.datasets import Images
from benchmarks.loader.epochs import BENCH
from benchmarks.loader.window import wait


def make_loader(kind: str, dataset: Any, options: dict[str, Any], *, on_gpu: bool) -> Any:
    """Make a loader of a kind, for the GPU if there is one."""
    if kind == "torch":
        from torch.utils.data import DataLoader

        return DataLoader(dataset, pin_memory=on_gpu, **options)
    import vramkit

    return vramkit.DataLoader(dataset, device="cuda" if on_gpu else None, **options)


def take_first(batches: Any, kind: str, *, on_gpu: bool) -> None:
    """Take one batch and wait until it is where it should be."""
    images, _ = next(batches)
    if on_gpu and kind == "torch":
        images.cuda(non_blocking=True)
    wait(on_gpu=on_gpu)


def times(kind: str, dataset: Any, options: dict[str, Any], *, on_gpu: bool) -> tuple[float, float]:
    """Return both times of a fresh loader with persistent workers."""
    begin = time.perf_counter()
    loader = make_loader(kind, dataset, options, on_gpu=on_gpu)
    batches = iter(loader)
    take_first(batches, kind, on_gpu=on_gpu)
    first = time.perf_counter() - begin
    for _ in batches:
        pass
    wait(on_gpu=on_gpu)
    begin = time.perf_counter()
    batches = iter(loader)
    take_first(batches, kind, on_gpu=on_gpu)
    turn = time.perf_counter() - begin
    del batches, loader
    gc.collect()
    return first, turn


def bench_startup(recorder: Recorder, *, on_gpu: bool, quick: bool, prefixes: str) -> None:
    """Measure both times with few and with many workers."""
    samples = 4096 if on_gpu else 512
    dataset = Images(samples, length=samples)
    for workers in (8, 16) if on_gpu else (2,):
        name = f"python_images_workers_{workers}"
        if not name.startswith(tuple(prefixes.split(","))):
            continue
        options = {
            "batch_size": 256 if on_gpu else 64,
            "num_workers": workers,
            "persistent_workers": True,
        }
        turns = interleave(
            {
                kind: partial(times, kind, dataset, options, on_gpu=on_gpu)
                for kind in ("vramkit", "torch")
            },
            rounds=2 if quick else 5,
            warm_up=1,
        )
        for position, metric in enumerate(("first_batch", "epoch_turn")):
            own = summarize([taken[position] for taken in turns["vramkit"]])
            theirs = summarize([taken[position] for taken in turns["torch"]])
            settings = {"num_workers": workers, "to": "cuda" if on_gpu else "host"}
            recorder.add(Row(BENCH, name, metric, "s", own, settings, "torch", theirs))
