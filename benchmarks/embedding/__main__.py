"""Embedding tables beside nn.EmbeddingBag with sparse gradients: forward and step.

On a GPU where there is one, beside FBGEMM's tables too; else on the CPU.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._shared.harness import Recorder, Row, interleave, parser, summarize
from benchmarks._shared.provenance import gpu_provenance, measure_this_tree
from benchmarks.embedding.gpu import (
    bench_bags,
    bench_cached,
    bench_host,
    bench_narrow,
    bench_nvidia,
)
from benchmarks.embedding.memory import bench_memory

BENCH = "bench_embedding"
SEED = 1
RATE = 1e-3
# Batches that take turns on the CPU: rows of one batch would stay in its caches.
BATCHES = 24
_PEERS = {"sgd": torch.optim.SGD, "adam": torch.optim.SparseAdam}


@dataclass(frozen=True)
class Case:
    """A table, and batches of bags of one length."""

    rows: int
    dim: int
    bags: int
    length: int
    skewed: bool

    @property
    def name(self) -> str:
        """What results call it."""
        ids = "zipf" if self.skewed else "uniform"
        return f"{self.rows}x{self.dim}_{self.bags}x{self.length}_{ids}"

    def ids(self) -> Tensor:
        """Draw a batch."""
        size = (self.bags, self.length)
        if not self.skewed:
            return torch.randint(self.rows, size)
        # A power law of exponent 1.05, its ranks scattered over the rows.
        uniform = torch.rand(size, dtype=torch.float64)
        ranks = ((self.rows**-0.05 - 1) * uniform + 1) ** -20
        return (ranks.long().clamp(1, self.rows) - 1) * 2654435761 % self.rows


CASES = tuple(
    Case(*sizes, skewed)
    for sizes in ((1_000_000, 64, 8192, 1), (1_000_000, 64, 2048, 20), (500_000, 128, 4096, 10))
    for skewed in (False, True)
)


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def own_step(table: Any, batches: Iterator[Tensor], grad: Tensor) -> None:
    """Train on a batch; backward updates the rows."""
    table(next(batches)).backward(grad)


def peer_step(table: Any, optimizer: Any, batches: Iterator[Tensor], grad: Tensor) -> None:
    """Train on a batch with one of PyTorch's optimizers."""
    optimizer.zero_grad()
    table(next(batches)).backward(grad)
    optimizer.step()


def evaluate(table: Any, batches: Iterator[Tensor]) -> Tensor:
    """Look up only."""
    with torch.no_grad():
        found: Tensor = table(next(batches))
    return found


def bench_case(recorder: Recorder, case: Case, optimizer: Any, rounds: int) -> None:
    """Measure one case with all rows in use on both sides."""
    from vramkit.nn import SparseEmbeddingBag

    torch.manual_seed(SEED)
    peer = nn.EmbeddingBag(case.rows, case.dim, mode="sum", sparse=True)
    own = SparseEmbeddingBag.from_embedding(peer, optimizer=optimizer, lr=RATE)
    updates = _PEERS[optimizer](peer.parameters(), lr=RATE)
    batches, grad = [case.ids() for _ in range(BATCHES)], torch.randn(case.bags, case.dim)
    turns_of = partial(itertools.cycle, batches)
    torch.testing.assert_close(evaluate(own, turns_of()), evaluate(peer, turns_of()))
    settings = {
        "optimizer": optimizer,
        "threads": torch.get_num_threads(),
        "seed": SEED,
        "batches": BATCHES,
    }
    measured: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {
            "own": partial(evaluate, own, turns_of()),
            "peer": partial(evaluate, peer, turns_of()),
        },
        f"step_{optimizer}": {
            "own": partial(own_step, own, turns_of(), grad),
            "peer": partial(peer_step, peer, updates, turns_of(), grad),
        },
    }
    for metric, sides in measured.items():
        calls = {side: partial(seconds, call) for side, call in sides.items()}
        turns = interleave(calls, rounds=rounds, warm_up=2)
        figures = {side: summarize([1e3 * s for s in turn]) for side, turn in turns.items()}
        row = (figures["own"], settings, "nn.EmbeddingBag", figures["peer"])
        recorder.add(Row(BENCH, case.name, metric, "ms", *row))


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    options.add_argument("--cases", default="", help="beginnings of names, separated by commas")
    options.add_argument("--cpu", action="store_true", help="on the CPU, whatever there is")
    options.add_argument("--commit", help="label of the commit, where there is no repository")
    chosen = options.parse_args()
    measure_this_tree()
    on_gpu = torch.cuda.is_available() and not chosen.cpu
    origin = gpu_provenance(chosen.commit) if on_gpu else None
    recorder = Recorder(record=chosen.record, allow_dirty=chosen.allow_dirty, origin=origin)
    prefixes = tuple(chosen.cases.split(","))
    if on_gpu:
        parts = {
            "nvidia": bench_nvidia,
            "narrow": bench_narrow,
            "host": bench_host,
            "cached": bench_cached,
        }
        for name, bench in parts.items():
            if name.startswith(prefixes):
                bench(recorder, quick=chosen.quick)
        if "memory".startswith(prefixes):
            bench_memory(recorder)
        bench_bags(recorder, quick=chosen.quick, prefixes=prefixes)
        return 0
    for case in CASES:
        for optimizer in _PEERS if case.name.startswith(prefixes) else ():
            bench_case(recorder, case, optimizer, 5 if chosen.quick else 25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
