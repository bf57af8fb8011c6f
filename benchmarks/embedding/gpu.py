"""Tables on a GPU beside nn.EmbeddingBag with sparse gradients and FBGEMM's fused tables."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._shared.harness import Recorder, Row, Summary, say, summarize

BENCH = "bench_embedding"
SEED = 1
RATE = 1e-3
OPTIMIZERS = ("sgd", "adam")
# NVIDIA's published setup: ten tables, a power law, no pooling.
_NV_TABLES, _NV_IDS, _NV_DIM, _NV_ROWS = 10, 104_857, 128, 5_000_000


@dataclass(frozen=True)
class Work:
    """What a contestant does: a lookup, a training step, and what it needs in memory."""

    forward: Callable[[], object]
    step: Callable[[], object]


def zipf(count: int, rows: int) -> Tensor:
    """Draw ids of a power law of exponent 1.05, its ranks scattered over the rows."""
    uniform = torch.rand(count, device="cuda", dtype=torch.float64)
    ranks = ((rows**-0.05 - 1) * uniform + 1) ** -20
    return (ranks.long().clamp(1, rows) - 1) * 2654435761 % rows


def times_ms(call: Callable[[], object], *, quick: bool) -> Summary:
    """Time calls on the GPU, the L2 cache emptied before each."""
    flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    for _ in range(5):
        call()
    events = []
    for _ in range(10 if quick else 60):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return summarize([begin.elapsed_time(end) for begin, end in events])


def measure(build: Callable[[], Work], *, quick: bool) -> dict[str, Summary]:
    """Build a contestant, time it, and let it go."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    work = build()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        forward = times_ms(work.forward, quick=quick)
    step = times_ms(work.step, quick=quick)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    return {"forward": forward, "step": step, "peak": summarize([peak])}


def report(
    recorder: Recorder,
    case: str,
    settings: dict[str, Any],
    contestants: dict[str, Callable[[], Work]],
    *,
    quick: bool,
) -> None:
    """Record each of our contestants beside each peer; one that cannot run is named."""
    found = {}
    for name, build in contestants.items():
        try:
            found[name] = measure(build, quick=quick)
        except (ImportError, OSError, RuntimeError) as err:
            say(f"{case}: {name} is left out: {str(err).splitlines()[0][:120]}")
    peers = {name: figures for name, figures in found.items() if not name.startswith("vramkit")}
    for name in found.keys() - peers.keys():
        for metric, own in found[name].items():
            unit = "GiB" if metric == "peak" else "ms"
            row = partial(Row, BENCH, case, metric, unit, own, settings | {"table": name})
            for peer, figures in peers.items():
                recorder.add(row(peer, figures[metric]))
            if not peers:
                recorder.add(row())


def _own(table: Any, inputs: tuple[Tensor, ...], grad: Tensor) -> Work:
    table(*inputs).backward(grad)  # every id has a row from now on
    return Work(lambda: table(*inputs), lambda: table(*inputs).backward(grad))


def _torch_work(table: Any, optimizer: str, inputs: tuple[Tensor, ...], grad: Tensor) -> Work:
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.SparseAdam}
    updates = kinds[optimizer](table.parameters(), lr=RATE)

    def step() -> None:
        updates.zero_grad(set_to_none=True)
        table(*inputs).backward(grad)
        updates.step()

    return Work(lambda: table(*inputs), step)


def _fbgemm(
    shapes: list[tuple[int, int]],
    optimizer: str,
    inputs: tuple[Tensor, Tensor],
    grad: Tensor,
    *,
    pooled: bool,
) -> Work:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        EmbeddingLocation,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kinds = {"sgd": EmbOptimType.EXACT_SGD, "adam": EmbOptimType.ADAM}
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(*shape, EmbeddingLocation.DEVICE, ComputeDevice.CUDA) for shape in shapes],
        optimizer=kinds[optimizer],
        weights_precision=SparseType.FP32,
        learning_rate=RATE,
        device=torch.device("cuda"),
        pooling_mode=PoolingMode.SUM if pooled else PoolingMode.NONE,
    )
    return Work(lambda: table(*inputs), lambda: table(*inputs).backward(grad))


def _ten_tables(tables: Any, ids: tuple[Tensor, ...], grads: list[Tensor]) -> Work:
    inputs = {str(number): part for number, part in enumerate(ids)}

    def step() -> None:
        found = tables(inputs)
        torch.autograd.backward(list(found.values()), grads)

    step()
    return Work(lambda: tables(inputs), step)


def _nvidia_contestants(
    optimizer: Any, parts: tuple[Tensor, ...], grad: Tensor
) -> dict[str, Callable[[], Work]]:
    from vramkit.nn import SparseEmbedding, SparseEmbeddingCollection

    joined = torch.cat([part + number * _NV_ROWS for number, part in enumerate(parts)])
    offsets = torch.arange(len(joined) + 1, device="cuda")
    shapes = [(_NV_ROWS, _NV_DIM)] * _NV_TABLES

    def table(rows: int | None) -> SparseEmbedding:
        return SparseEmbedding(rows, _NV_DIM, optimizer=optimizer, lr=RATE, seed=1, device="cuda")

    def ten(rows: int | None) -> Work:
        tables = {str(number): table(rows) for number in range(_NV_TABLES)}
        grads = list(grad.split(_NV_IDS))
        return _ten_tables(SparseEmbeddingCollection(tables), parts, grads)

    return {
        "vramkit, ten fixed tables": lambda: ten(_NV_ROWS),
        "vramkit, ten growing tables": lambda: ten(None),
        "vramkit, one fixed table": lambda: _own(table(_NV_ROWS * _NV_TABLES), (joined,), grad),
        "vramkit, one growing table": lambda: _own(table(None), (joined,), grad),
        "FBGEMM": lambda: _fbgemm(
            shapes, optimizer, (torch.cat(parts), offsets), grad, pooled=False
        ),
    }


def bench_nvidia(recorder: Recorder, *, quick: bool) -> None:
    """NVIDIA's setup: 1,048,570 ids of ten tables at once."""
    torch.manual_seed(SEED)
    parts = tuple(zipf(_NV_IDS, _NV_ROWS) for _ in range(_NV_TABLES))
    grad = torch.randn(_NV_TABLES * _NV_IDS, _NV_DIM, device="cuda")
    unique = sum(part.unique().numel() for part in parts)
    for optimizer in OPTIMIZERS:
        settings = {"optimizer": optimizer, "seed": SEED, "unique": unique}
        contestants = _nvidia_contestants(optimizer, parts, grad)
        report(recorder, "nvidia_10x5000000x128", settings, contestants, quick=quick)


def bench_narrow(recorder: Recorder, *, quick: bool) -> None:
    """NVIDIA's setup as one table, with rows, outputs and gradients in bfloat16 and in float32."""
    from vramkit.nn import SparseEmbedding

    torch.manual_seed(SEED)
    parts = [zipf(_NV_IDS, _NV_ROWS) + number * _NV_ROWS for number in range(_NV_TABLES)]
    ids = torch.cat(parts)

    def build(rows: int | None, dtype: torch.dtype, optimizer: Any) -> Work:
        options: dict[str, Any] = {"optimizer": optimizer, "lr": RATE, "dtype": dtype}
        table = SparseEmbedding(rows, _NV_DIM, seed=1, device="cuda", **options)
        return _own(table, (ids,), torch.randn(len(ids), _NV_DIM, device="cuda", dtype=dtype))

    for optimizer in OPTIMIZERS:
        for kind, rows in (("fixed", _NV_ROWS * _NV_TABLES), ("growing", None)):
            contestants = {
                f"vramkit, {kind}, bfloat16": partial(build, rows, torch.bfloat16, optimizer),
                f"{kind}, float32": partial(build, rows, torch.float32, optimizer),
            }
            settings = {"optimizer": optimizer, "seed": SEED, "unique": ids.unique().numel()}
            report(recorder, "narrow_nvidia", settings, contestants, quick=quick)


def bench_host(recorder: Recorder, *, quick: bool) -> None:
    """NVIDIA's setup as one table whose rows are all in host memory."""
    from vramkit.nn import SparseEmbedding

    torch.manual_seed(SEED)
    parts = [zipf(_NV_IDS, _NV_ROWS) + number * _NV_ROWS for number in range(_NV_TABLES)]
    ids = torch.cat(parts)
    settings = {"optimizer": "sgd", "seed": SEED, "unique": ids.unique().numel()}
    for dtype in (torch.float32, torch.bfloat16):
        grad = torch.randn(len(ids), _NV_DIM, device="cuda", dtype=dtype)

        def build(dtype: torch.dtype = dtype, grad: Tensor = grad) -> Work:
            options: dict[str, Any] = {"lr": RATE, "seed": 1, "device": "cuda", "dtype": dtype}
            table = SparseEmbedding(None, _NV_DIM, optimizer="sgd", placement="host", **options)
            return _own(table, (ids,), grad)

        name = f"vramkit, {str(dtype).removeprefix('torch.')} in host memory"
        report(recorder, "host_nvidia", settings, {name: build}, quick=quick)


def _cached_work(batches: list[Tensor], grad: Tensor, budget: int, *, prefetches: bool) -> Work:
    from vramkit.nn import SparseEmbedding

    options: dict[str, Any] = {"lr": RATE, "seed": 1, "device": "cuda", "budget": budget}
    table = SparseEmbedding(None, _NV_DIM, optimizer="adam", placement="cached", **options)
    turn = 0

    def step() -> None:
        nonlocal turn
        output = table(batches[turn % len(batches)])
        turn += 1
        if prefetches:
            table.prefetch(batches[turn % len(batches)])
        output.backward(grad)

    for _ in batches:
        step()
    return Work(lambda: table(batches[turn % len(batches)]), step)


def bench_cached(recorder: Recorder, *, quick: bool) -> None:
    """NVIDIA's setup as one cached table with Adam: one batch again and again, and four in turn."""
    torch.manual_seed(SEED)
    batches = [
        torch.cat([zipf(_NV_IDS, _NV_ROWS) + number * _NV_ROWS for number in range(_NV_TABLES)])
        for _ in range(4)
    ]
    grad = torch.randn(len(batches[0]), _NV_DIM, device="cuda")
    unique = max(ids.unique().numel() for ids in batches)
    # Values, two floats of state for each, counters, and an index that is half full.
    all_rows = int(unique * 1.1) * (_NV_DIM * 12 + 32 + 43)
    for case, chosen in (("one_batch", batches[:1]), ("four_batches", batches)):
        for share in (1.0, 0.2):
            budget = int(all_rows * share)
            settings = {"optimizer": "adam", "seed": SEED, "unique": unique, "budget": budget}
            contestants = {
                f"vramkit, cache of {share:.0%}{', prefetch' if prefetches else ''}": partial(
                    _cached_work, chosen, grad, budget, prefetches=prefetches
                )
                for prefetches in (False, True)
            }
            report(recorder, f"cached_nvidia_{case}", settings, contestants, quick=quick)


def _bag_contestants(
    optimizer: Any, shape: tuple[int, int], ids: Tensor, length: int, grad: Tensor
) -> dict[str, Callable[[], Work]]:
    from vramkit.nn import SparseEmbeddingBag

    bounds = torch.arange(0, len(ids) + 1, length, device="cuda")
    starts = bounds[:-1]

    def plain() -> nn.EmbeddingBag:
        return nn.EmbeddingBag(*shape, mode="sum", sparse=True, device="cuda")

    def own() -> Work:
        table = SparseEmbeddingBag.from_embedding(plain(), optimizer=optimizer, lr=RATE)
        return _own(table, (ids, starts), grad)

    return {
        "vramkit": own,
        "nn.EmbeddingBag": lambda: _torch_work(plain(), optimizer, (ids, starts), grad),
        "FBGEMM": lambda: _fbgemm([shape], optimizer, (ids, bounds), grad, pooled=True),
    }


def bench_bags(recorder: Recorder, *, quick: bool, prefixes: tuple[str, ...]) -> None:
    """Sums of bags in tables whose rows are all in use."""
    sizes = ((10_000_000, 128, 65_536, 1), (10_000_000, 128, 8192, 20), (4_000_000, 64, 65_536, 10))
    for rows, dim, bags, length in sizes:
        for skewed in (False, True):
            case = f"{rows}x{dim}_{bags}x{length}_{'zipf' if skewed else 'uniform'}"
            if not case.startswith(prefixes):
                continue
            torch.manual_seed(SEED)
            count = bags * length
            ids = zipf(count, rows) if skewed else torch.randint(rows, (count,), device="cuda")
            grad = torch.randn(bags, dim, device="cuda")
            for optimizer in OPTIMIZERS:
                settings = {"optimizer": optimizer, "seed": SEED, "unique": ids.unique().numel()}
                contestants = _bag_contestants(optimizer, (rows, dim), ids, length, grad)
                report(recorder, case, settings, contestants, quick=quick)
