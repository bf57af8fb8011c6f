"""Whole loaders: bytes, batches and CPU seconds, beside PyTorch's loader in the same run."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks._shared.harness import Recorder, Row, Setting, interleave, say, summarize
from benchmarks.loader.cases import Case, cases, chosen
from benchmarks.loader.contest import absence, contest, running
from benchmarks.loader.contestants import Maker
from benchmarks.loader.window import Turn, Window, measure, warm_up_batches

BENCH = "bench_loader"
LINK_BYTES = 256 << 20
LINK_COPIES = 20
LINK_ROUNDS = 5
METRICS = (("gigabytes_per_s", "GB/s"), ("batches_per_s", "1/s"), ("cpu_s_per_gigabyte", "s/GB"))


def bench_epochs(
    recorder: Recorder, *, on_gpu: bool, rounds: int, window_s: float, prefixes: str
) -> None:
    """Measure all cases whose names begin with one of ``prefixes``."""
    if on_gpu:
        record_link(recorder)
    for case in chosen(cases(on_gpu=on_gpu), prefixes):
        begin = time.perf_counter()
        bench_case(recorder, case, on_gpu=on_gpu, rounds=rounds, window_s=window_s)
        say(f"{case.name} took {time.perf_counter() - begin:.0f} s")


def record_link(recorder: Recorder) -> None:
    """Record what the link carries at most: the ceiling of all rates in this run."""
    rates = summarize([link_rate() for _ in range(LINK_ROUNDS)])
    settings = {"buffer_bytes": LINK_BYTES, "copies": LINK_COPIES}
    recorder.add(Row(BENCH, "link_from_pinned_memory", "gigabytes_per_s", "GB/s", rates, settings))


def link_rate() -> float:
    """GB/s of one pinned buffer that is copied again and again."""
    source = torch.empty(LINK_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty(LINK_BYTES, dtype=torch.uint8, device="cuda")
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(LINK_COPIES):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return LINK_COPIES * LINK_BYTES / (time.perf_counter() - begin) / 1e9


def bench_case(
    recorder: Recorder, case: Case, *, on_gpu: bool, rounds: int, window_s: float
) -> None:
    """Measure one case, the contestants by turns."""
    dataset = case.make()
    window = Window(warm_up_batches(case.options), window_s)

    def turn_of(make: Maker) -> Turn:
        with running(make, dataset, case.options, on_gpu=on_gpu) as batches:
            return measure(batches, window, on_gpu=on_gpu)

    makers, absent = contest(case, dataset, on_gpu=on_gpu)
    turns = interleave(
        {name: partial(turn_of, make) for name, make in makers.items()}, rounds=rounds
    )
    settings = settings_of(case.options, window, on_gpu=on_gpu) | absence(absent)
    for peer in [name for name in turns if name != "vramkit"]:
        record(recorder, case.name, turns, peer, settings)


def settings_of(options: Mapping[str, Any], window: Window, *, on_gpu: bool) -> dict[str, Setting]:
    """Return all that the figures of a case depend on."""
    settings: dict[str, Setting] = {
        name: value.__name__ if callable(value) else value for name, value in options.items()
    }
    return settings | {
        "to": "cuda" if on_gpu else "host",
        "warm_up_batches": window.warm_up_batches,
        "window_s": window.seconds,
    }


def record(
    recorder: Recorder,
    name: str,
    turns: Mapping[str, list[Turn]],
    peer: str,
    settings: Mapping[str, Setting],
) -> None:
    """Record all metrics of one case beside one peer."""
    counts = {
        "batches_measured": min(turn.batches for turn in turns["vramkit"]),
        "peer_batches_measured": min(turn.batches for turn in turns[peer]),
    }
    for metric, unit in METRICS:
        own, theirs = (
            summarize([getattr(turn, metric) for turn in turns[each]]) for each in ("vramkit", peer)
        )
        row = Row(BENCH, name, metric, unit, own, dict(settings) | counts, peer, theirs)
        recorder.add(row)
