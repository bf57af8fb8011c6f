"""Puts one allocator under PyTorch, in a process of its own, with or without a limit."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import torch

from benchmarks.pool_cuda.spec import (
    Spec,
)

Figures = dict[str, object]
_FIRST_RMM_BYTES = 1 << 30
_OUT_OF_MEMORY = ("out of memory", "out_of_memory", "bad_alloc", "ALLOC_FAILED")


@dataclass(frozen=True)
class Books:
    """What an allocator tells about itself."""

    figures: Callable[[], Figures]
    mapping_calls: Callable[[], int] | None = None


def is_out_of_memory(err: BaseException) -> bool:
    """Tell whether an allocator, or a library for it, says that memory ran out."""
    if isinstance(err, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(err, RuntimeError) and any(text in str(err) for text in _OUT_OF_MEMORY)


@contextlib.contextmanager
def allocator_scope(spec: Spec) -> Iterator[Books]:
    """Let PyTorch allocate as ``spec`` says; the pool rules inside the scope, others for good."""
    if spec.allocator == "vramkit":
        import vramkit

        assert spec.capacity_bytes is not None
        with vramkit.MemoryPool(
            spec.capacity_bytes, device="cuda", page_bytes=spec.page_bytes
        ) as pool:
            yield Books(lambda: _pool_figures(pool.stats()), lambda: pool.stats().mapping_calls)
        return
    if spec.allocator == "rmm":
        yield _use_rmm(spec.capacity_bytes)
        return
    torch.zeros(1, device="cuda")
    free_bytes = torch.cuda.mem_get_info()[0]
    if spec.capacity_bytes is not None and spec.allocator == "async":
        # It has no limit of its own: take what is above the limit, and above what kernels and
        # library handles take of the device beside the allocator.
        take_device_memory(free_bytes - spec.capacity_bytes - spec.outside_bytes)
        free_bytes = torch.cuda.mem_get_info()[0]
    elif spec.capacity_bytes is not None:
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, spec.capacity_bytes / total_bytes))
    yield Books(lambda: _torch_figures(free_bytes))


def take_device_memory(size_bytes: int) -> None:
    """Take memory straight from the driver, for the life of the process.

    Raises:
        RuntimeError: the driver refuses.
    """
    address = ctypes.c_uint64()
    status = ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2(
        ctypes.byref(address), ctypes.c_size_t(size_bytes)
    )
    if status != 0:
        raise RuntimeError(f"cuMemAlloc of {size_bytes:,} bytes: driver error {status}")


def _torch_figures(free_at_start_bytes: int) -> Figures:
    stats = torch.cuda.memory_stats()
    used_bytes = free_at_start_bytes - torch.cuda.mem_get_info()[0]
    return {
        "peak_requested_bytes": stats.get("requested_bytes.all.peak"),
        "peak_allocated_bytes": stats.get("allocated_bytes.all.peak"),
        "peak_reserved_bytes": stats.get("reserved_bytes.all.peak"),
        "outside_bytes": max(0, used_bytes - stats.get("reserved_bytes.all.current", 0)),
        "retries": stats.get("num_alloc_retries"),
        "device_allocs": stats.get("num_device_alloc"),
        "allocations": stats.get("allocation.all.allocated"),
    }


def _pool_figures(stats: object) -> Figures:
    names = (
        "capacity_bytes page_bytes peak_live_bytes peak_allocated_bytes peak_mapped_bytes "
        "allocations failures stitched_requests stitched_pages alias_hits mapping_calls "
        "cross_stream_waits"
    )
    return {name: getattr(stats, name) for name in names.split()}


def _use_rmm(capacity_bytes: int | None) -> Books:
    rmm = import_module("rmm")
    first = _FIRST_RMM_BYTES if capacity_bytes is None else capacity_bytes
    pool = rmm.mr.PoolMemoryResource(
        rmm.mr.CudaMemoryResource(), initial_pool_size=first, maximum_pool_size=capacity_bytes
    )
    counted = rmm.mr.StatisticsResourceAdaptor(pool)
    rmm.mr.set_current_device_resource(counted)
    torch.cuda.memory.change_current_allocator(
        import_module("rmm.allocators.torch").rmm_torch_allocator
    )

    def figures() -> Figures:
        return {
            "peak_requested_bytes": counted.allocation_counts.peak_bytes,
            "peak_reserved_bytes": pool.pool_size(),
        }

    return Books(figures)
