"""Random rows gathered by vramkit's native threads, beside torch.index_select and numpy.take.

Every contestant copies the same rows, in the same order, into the same destination.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks._shared.harness import (
    Recorder,
    Row,
    Setting,
    interleave,
    say,
    summarize,
)
from benchmarks.pool_core.native_driver import CORE_LIBRARY

BENCH = "bench_loader"
ROW_BYTES = (64, 256, 4096, 150_528)
THREADS = (1, 2)
SOURCE_BYTES = 256 << 20
BATCH_BYTES = 32 << 20
SEED = 1
Gather = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Random rows of one size, and where they go."""

    source: torch.Tensor
    indices: torch.Tensor
    copied: torch.Tensor

    @property
    def copied_bytes(self) -> int:
        """Bytes of the gathered rows."""
        return self.copied.numel() * self.copied.element_size()


def make_case(row_bytes: int, source_bytes: int, batch_bytes: int) -> Case:
    """Make an array of random rows and an index list with repetitions."""
    width = row_bytes // 4
    rows, count = source_bytes // row_bytes, batch_bytes // row_bytes
    random = torch.Generator().manual_seed(SEED)
    return Case(
        torch.rand((rows, width), generator=random),
        torch.randint(rows, (count,), generator=random),
        torch.zeros((count, width)),
    )


def own_gather(case: Case, threads: int) -> Gather:
    """Return what gathers with a Gatherer of so many threads, the calling one included."""
    from vramkit._core import Gatherer, Piece, Plan, Segment

    row_bytes = case.source[0].nbytes
    segment = Segment(case.source.data_ptr(), 0, len(case.source))
    plan = Plan([Piece([segment], row_bytes, row_bytes)])
    # The thread that waits helps.
    gatherer = Gatherer(threads - 1)
    destinations = [case.copied.data_ptr()]

    def gather() -> None:
        ticket = plan.submit(gatherer, destinations, case.indices.data_ptr(), len(case.indices))
        gatherer.wait(ticket)

    return gather


def contestants(case: Case, threads: int, *, with_own: bool) -> dict[str, Gather]:
    """Name everyone who takes a turn; numpy.take has one thread whatever is asked for."""
    source, indices, copied = case.source.numpy(), case.indices.numpy(), case.copied.numpy()
    made: dict[str, Gather] = {
        "index_select": partial(torch.index_select, case.source, 0, case.indices, out=case.copied),
        # Any other mode goes through a buffer.
        "numpy.take": partial(np.take, source, indices, axis=0, out=copied, mode="clip"),
    }
    return made | ({"vramkit": own_gather(case, threads)} if with_own else {})


def check_same_work(case: Case, gathers: dict[str, Gather]) -> None:
    """Make sure that all contestants copy the same rows.

    Raises:
        RuntimeError: One of them does not.
    """
    expected = case.source[case.indices]
    for name, gather in gathers.items():
        case.copied.zero_()
        gather()
        if not torch.equal(case.copied, expected):
            raise RuntimeError(f"{name} has gathered other rows than indexing does")


def rate(case: Case, gather: Gather) -> float:
    """Return the GB/s of one gather."""
    start = time.perf_counter()
    gather()
    return case.copied_bytes / (time.perf_counter() - start) / 1e9


def bench_case(
    recorder: Recorder, row_bytes: int, threads: int, *, rounds: int, with_own: bool
) -> None:
    """Measure one size of rows with so many threads."""
    torch.set_num_threads(threads)
    case = make_case(row_bytes, SOURCE_BYTES, BATCH_BYTES)
    gathers = contestants(case, threads, with_own=with_own)
    check_same_work(case, gathers)
    turns = interleave(
        {name: partial(rate, case, gather) for name, gather in gathers.items()},
        rounds=rounds,
        warm_up=2,
    )
    figures = {name: summarize(samples) for name, samples in turns.items()}
    name = f"rows_of_{row_bytes}_threads_{threads}"
    settings: dict[str, Setting] = {
        "row_bytes": row_bytes,
        "threads": threads,
        "source_bytes": SOURCE_BYTES,
        "batch_bytes": case.copied_bytes,
        "order": "random with repetitions",
        "seed": SEED,
    }
    own = figures.pop("vramkit", None)
    for peer, theirs in figures.items():
        if own is None:
            say(f"{name:28} {peer:16} {theirs.median:12,.5g} GB/s")
        else:
            recorder.add(Row(BENCH, name, "gather_rate", "GB/s", own, settings, peer, theirs))


def bench_gather(recorder: Recorder, *, quick: bool, with_own: bool) -> None:
    """Measure all sizes of rows."""
    if with_own and not CORE_LIBRARY.exists():
        say(f"skipped: vramkit is not built ({CORE_LIBRARY.name}); run `make build`")
        with_own = False
    for row_bytes in ROW_BYTES:
        for threads in THREADS:
            rounds = 5 if quick else 25
            bench_case(recorder, row_bytes, threads, rounds=rounds, with_own=with_own)
