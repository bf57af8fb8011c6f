"""Host cost of a small allocation, and start-up, under one allocator in its own process."""

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product

import torch

from benchmarks.pool_cuda.allocators import allocator_scope
from benchmarks.pool_cuda.spec import (
    HOST_SIZES,
    HOST_THREADS,
    STARTUP_BYTES,
    Spec,
)

_BATCHES = 24
_PAIRS = 500
_TURNS = 3
_FIRST_TENSOR_BYTES = 1 << 20
_BACKGROUND_S = 1.5


def host_cost(spec: Spec) -> dict[str, object]:
    """Time torch.empty and free: nanoseconds a pair, a sample a batch of pairs.

    Beside them the time from the threads' start to the last one's end by all their pairs: what
    waiting for each other costs is in it.
    """
    found: dict[str, object] = {}
    with allocator_scope(spec):
        for size, threads in product(HOST_SIZES, HOST_THREADS):
            pairs_ns, together_ns = _pairs(HOST_SIZES[size], threads)
            found[f"{size}_{threads}"] = pairs_ns
            found[f"{size}_{threads}_together"] = [together_ns]
    return found


def _pairs(size_bytes: int, threads: int) -> tuple[list[float], float]:
    if threads == 1:
        # In the process's own thread, where most training runs.
        _batch(size_bytes)
        alone = [_batch(size_bytes) for _ in range(_BATCHES)]
        return alone, statistics.fmean(alone)
    samples: list[list[float]] = [[] for _ in range(threads)]
    together = threading.Barrier(threads + 1)

    def measure(mine: list[float]) -> None:
        _batch(size_bytes)
        together.wait()
        mine.extend(_batch(size_bytes) for _ in range(_BATCHES))

    workers = [threading.Thread(target=measure, args=(mine,)) for mine in samples]
    for worker in workers:
        worker.start()
    together.wait()
    start = time.perf_counter_ns()
    for worker in workers:
        worker.join()
    together_ns = (time.perf_counter_ns() - start) / (threads * _BATCHES * _PAIRS)
    return [sample for mine in samples for sample in mine], together_ns


def _batch(size_bytes: int) -> float:
    empty = partial(torch.empty, size_bytes, dtype=torch.uint8, device="cuda")
    start = time.perf_counter_ns()
    for _ in range(_PAIRS):
        empty()
    return (time.perf_counter_ns() - start) / _PAIRS


def start_up(spec: Spec) -> dict[str, object]:
    """Time until the first tensor is there, and until all of the memory is; CUDA runs already."""
    take: Callable[[], dict[str, float]] = _start_native
    if spec.allocator == "vramkit":
        take = partial(_start_pool, spec.page_bytes)
    if spec.allocator == "rmm":
        take = _start_rmm
        # Only before CUDA runs; until a pool is made, rmm calls cudaMalloc.
        adaptor = import_module("rmm.allocators.torch").rmm_torch_allocator
        torch.cuda.memory.change_current_allocator(adaptor)
    # The context and the fill kernel are no part of an allocator's start.
    _first_tensor()
    return {"turns": [take() for _ in range(_TURNS)]}


def _first_tensor() -> torch.Tensor:
    first = torch.zeros(_FIRST_TENSOR_BYTES, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    return first


def _start_native() -> dict[str, float]:
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    start = time.perf_counter()
    first = _first_tensor()
    first_s = time.perf_counter() - start
    rest = torch.empty(STARTUP_BYTES - first.nbytes, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    all_s = time.perf_counter() - start
    del first, rest
    return {"first_s": first_s, "all_s": all_s}


def _start_pool(page_bytes: int | None) -> dict[str, float]:
    import vramkit

    start = time.perf_counter()
    pool = vramkit.MemoryPool(STARTUP_BYTES, device="cuda", page_bytes=page_bytes)
    returned_s = time.perf_counter() - start
    with pool:
        first = _first_tensor()
        first_s = time.perf_counter() - start
        while pool.stats().mapped_bytes < STARTUP_BYTES:
            if time.perf_counter() - start > _BACKGROUND_S:
                break
            time.sleep(1e-3)
        background_s = time.perf_counter() - start
        background_bytes = pool.stats().mapped_bytes
        on_demand = time.perf_counter()
        rest = torch.empty(pool.stats().largest_free_bytes, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        on_demand_s = time.perf_counter() - on_demand
    stats = pool.stats()
    del first, rest
    closing = time.perf_counter()
    pool.close()
    return {
        "returned_s": returned_s,
        "first_s": first_s,
        "all_s": background_s + (0.0 if background_bytes >= STARTUP_BYTES else on_demand_s),
        "mapped_in_background_bytes": background_bytes,
        "mapped_bytes": stats.mapped_bytes,
        "page_bytes": stats.page_bytes,
        "closed_s": time.perf_counter() - closing,
    }


def _start_rmm() -> dict[str, float]:
    rmm = import_module("rmm")
    cuda = rmm.mr.CudaMemoryResource()
    start = time.perf_counter()
    pool = rmm.mr.PoolMemoryResource(cuda, initial_pool_size=STARTUP_BYTES)
    all_s = time.perf_counter() - start
    rmm.mr.set_current_device_resource(pool)
    _first_tensor()
    first_s = time.perf_counter() - start
    rmm.mr.set_current_device_resource(cuda)
    return {"first_s": first_s, "all_s": all_s}
