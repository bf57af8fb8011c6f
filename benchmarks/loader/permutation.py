"""The order of a shuffled epoch, as the loader draws it, beside torch.randperm."""

import time
from functools import partial

import torch

from benchmarks._shared.harness import Recorder, Row, interleave, summarize
from benchmarks.loader.gather import BENCH

COUNTS = (1_000_000, 4_000_000, 16_000_000)
BATCH_SIZE = 1024
SEED = 1


def torch_times(count: int) -> tuple[float, float]:
    """Return the seconds until the first batch, and until the last, of torch.randperm."""
    generator = torch.Generator().manual_seed(SEED)
    begin = time.perf_counter()
    parts = torch.randperm(count, generator=generator).split(BATCH_SIZE)
    first = time.perf_counter() - begin
    assert len(parts) == -(-count // BATCH_SIZE)
    return first, time.perf_counter() - begin


def own_times(count: int) -> tuple[float, float]:
    """Return both times of the batches that the loader cuts."""
    from torch.utils.data import BatchSampler, RandomSampler

    from vramkit.loader._indices import tensor_batches

    torch.manual_seed(SEED)
    sampler = BatchSampler(RandomSampler(range(count)), BATCH_SIZE, drop_last=False)
    begin = time.perf_counter()
    batches = tensor_batches(sampler)
    assert batches is not None
    next(batches)
    first = time.perf_counter() - begin
    assert sum(1 for _ in batches) == -(-count // BATCH_SIZE) - 1
    return first, time.perf_counter() - begin


def bench_permutation(recorder: Recorder, *, quick: bool) -> None:
    """Measure all lengths."""
    for count in COUNTS:
        turns = interleave(
            {"torch.randperm": partial(torch_times, count), "vramkit": partial(own_times, count)},
            rounds=3 if quick else 15,
            warm_up=1,
        )
        for position, metric in enumerate(("first_batch", "whole_permutation")):
            own, theirs = (
                summarize([each[position] * 1e3 for each in turns[name]])
                for name in ("vramkit", "torch.randperm")
            )
            settings = {"rows": count, "batch_size": BATCH_SIZE, "seed": SEED}
            recorder.add(
                Row(
                    BENCH,
                    f"shuffle_{count}",
                    metric,
                    "ms",
                    own,
                    settings,
                    "torch.randperm",
                    theirs,
                )
            )
