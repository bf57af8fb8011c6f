"""A child process: trains `examples/train_recommender.py` when its parent says so.

usage: python -m benchmarks.together.worker SPEC

SPEC is the JSON object of a Spec. The process prepares all that needs no accelerator's memory,
prints "ready", and prints one JSON object for each line on standard input.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks._shared.provenance import measure_this_tree

FILL_IDS = 1 << 18


@dataclass(frozen=True)
class Spec:
    """What a process trains."""

    stock: bool
    device: str
    batch: int
    rows: int
    samples: int
    side: int
    workers: int
    bfloat16: bool = False
    limit_bytes: int = 0  # of PyTorch's allocator (0: none), or of the pool
    fill: bool = False  # vramkit's tables get all their rows first, as PyTorch's have them
    untimed: int = 0  # steps of each turn before the timed ones
    steps: int = 1
    rest_s: float = 0.0  # after a turn: the loader's workers fill their queues and stop


def limited(spec: Spec) -> Any:
    """Open the pool, or set the limit of PyTorch's allocator."""
    if not spec.stock:
        from vramkit import MemoryPool

        return MemoryPool(spec.limit_bytes, device=spec.device)
    if spec.limit_bytes:
        total = torch.cuda.get_device_properties(spec.device).total_memory
        torch.cuda.set_per_process_memory_fraction(spec.limit_bytes / total)
    return contextlib.nullcontext()


def fill(tables: Any, device: str) -> None:
    """Give every id of vramkit's tables a row."""
    for table in tables.tables.values():
        for first in range(0, table.num_embeddings, FILL_IDS):
            last = min(first + FILL_IDS, table.num_embeddings)
            ids = torch.arange(first, last, device=device)
            table(ids[:, None] if hasattr(table, "mode") else ids)


def is_out_of_memory(err: BaseException, pool: Any) -> bool:
    """Whether memory has run out; native operators raise a plain RuntimeError then."""
    if pool is not None and pool.stats().failures > 0:
        return True
    return isinstance(err, torch.OutOfMemoryError) or "out of memory" in str(err)


def turn(training: Any, spec: Spec) -> dict[str, Any]:
    """Run some steps and time the last of them together."""
    for _ in range(spec.untimed):
        training.step()
    _wait(spec)
    start = time.perf_counter()
    for _ in range(spec.steps):
        loss = training.step()
    _wait(spec)
    seconds = time.perf_counter() - start
    return {"samples_per_s": spec.steps * spec.batch / seconds, "loss": loss.item()}


def _wait(spec: Spec) -> None:
    if spec.device != "cpu":
        torch.cuda.synchronize()


def _free_bytes(spec: Spec) -> int:
    return 0 if spec.device == "cpu" else torch.cuda.mem_get_info()[0]


def memory(training: Any, pool: Any, spec: Spec, free_before: int) -> dict[str, Any]:
    """Return the bytes of the device that the process takes, beyond CUDA's context."""
    tables = training.model.tables
    if spec.stock:
        # SparseAdam keeps two values for each of a table's.
        table_bytes = 3 * sum(each.nbytes for each in tables.parameters())
        rows_in_use = sum(len(each) for each in tables.parameters())
    else:
        stats = [table.stats() for table in tables.tables.values()]
        table_bytes = sum(each.bytes for each in stats)
        rows_in_use = sum(each.rows_in_use for each in stats)
    figures = {"table_bytes": table_bytes, "rows_in_use": rows_in_use}
    if pool is not None:
        figures["peak_bytes"] = pool.stats().peak_allocated_bytes
    elif spec.device != "cpu":
        figures["peak_bytes"] = torch.cuda.max_memory_allocated()
        figures["reserved_bytes"] = torch.cuda.max_memory_reserved()
    return figures | {"device_bytes": free_before - _free_bytes(spec)}


def serve(spec: Spec, clicks: Any, output: Any) -> None:
    """Make a turn for each line that the parent writes, until memory runs out."""
    free_before = _free_bytes(spec)
    with limited(spec) as pool:
        try:
            for figures in turns(spec, clicks, pool, free_before):
                output.write(json.dumps({"ok": True} | figures) + "\n")
                if not sys.stdin.readline():
                    return
        except RuntimeError as err:
            if not is_out_of_memory(err, pool):
                raise
            output.write(json.dumps({"ok": False, "out_of_memory": str(err)[:500]}) + "\n")


def turns(spec: Spec, clicks: Any, pool: Any, free_before: int) -> Iterator[dict[str, Any]]:
    """Build a training, and make turns for ever."""
    from examples.train_recommender import Training

    training = Training(
        *(clicks, spec.rows, spec.batch),
        device=spec.device,
        stock=spec.stock,
        workers=spec.workers,
        row_dtype=torch.bfloat16 if spec.bfloat16 else torch.float32,
    )
    if spec.fill:
        fill(training.model.tables, spec.device)
    while True:
        figures = turn(training, spec) | memory(training, pool, spec, free_before)
        time.sleep(spec.rest_s)
        yield figures


def main() -> None:
    """Get ready, wait for the word, train."""
    # What libraries print goes to standard error: the parent reads lines that are ours.
    with os.fdopen(os.dup(1), "w", buffering=1) as output:
        os.dup2(2, 1)
        spec = Spec(**json.loads(sys.argv[1]))
        measure_this_tree()
        from examples.train_recommender import make_clicks

        clicks = make_clicks(spec.samples, spec.rows, spec.side)
        if spec.device != "cpu":
            torch.empty(1, device=spec.device)  # CUDA's context
            torch.cuda.empty_cache()
        output.write("ready\n")
        if not sys.stdin.readline():
            return
        serve(spec, clicks, output)


if __name__ == "__main__":
    main()
