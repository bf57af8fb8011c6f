"""What a table takes on the device, beside nn.Embedding with torch.optim.Adam."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks._shared.harness import Recorder, Row, summarize

BENCH = "bench_embedding"
_DIM, _ROWS, _BATCH = 128, 2_000_000, 100_000


@dataclass(frozen=True)
class Table:
    """Rows of a type with an optimizer, and the part of the ids that a training has seen."""

    dtype: torch.dtype
    optimizer: str
    seen: float

    @property
    def name(self) -> str:
        """What results call it."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype}, {self.optimizer}, {self.seen:.0%} of the ids seen"


TABLES = (
    Table(torch.float32, "adam", 1.0),
    Table(torch.bfloat16, "rowwise_adagrad", 1.0),
    Table(torch.int8, "rowwise_adagrad", 1.0),
    Table(torch.bfloat16, "rowwise_adagrad", 0.1),
    Table(torch.int8, "rowwise_adagrad", 0.1),
)


def bench_memory(recorder: Recorder) -> None:
    """Train tables on the ids that are seen, then ask PyTorch's allocator what is in use."""
    theirs = _allocated_by(_train_torch)
    for table in TABLES:

        def train(table: Table = table) -> object:
            return _train_own(table)

        own = _allocated_by(train)
        for metric, divisor, unit in (
            ("device bytes", 1.0, "B"),
            ("bytes per row in use", _ROWS * table.seen, "B"),
        ):
            found = [summarize([bytes_ / divisor]) for bytes_ in (own, theirs)]
            settings: dict[str, Any] = {"rows": _ROWS, "dim": _DIM, "seen": table.seen}
            row = (found[0], settings, "nn.Embedding with Adam", found[1])
            recorder.add(Row(BENCH, table.name, metric, unit, *row))


def _allocated_by(train: Callable[[], object]) -> float:
    """Return the bytes that are in use after a training, as long as its result lives."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    kept = train()
    gc.collect()
    torch.cuda.synchronize()
    in_use = torch.cuda.memory_allocated() - before
    del kept
    return float(in_use)


def _train_torch() -> object:
    table = torch.nn.Embedding(_ROWS, _DIM, device="cuda")
    optimizer = torch.optim.Adam(table.parameters())
    table(torch.arange(_BATCH, device="cuda")).sum().backward()
    optimizer.step()
    return table, optimizer


def _train_own(made: Table) -> object:
    from vramkit.nn import SparseEmbedding

    options: dict[str, Any] = {"dtype": made.dtype, "optimizer": made.optimizer, "lr": 0.01}
    table = SparseEmbedding(None, _DIM, seed=1, device="cuda", **options)
    seen = torch.randperm(_ROWS, device="cuda")[: int(_ROWS * made.seen)]
    for ids in seen.split(_BATCH):
        output = table(ids)
        output.backward(torch.ones_like(output))
    return table
