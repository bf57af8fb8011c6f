"""Chooses how the batches of a loader are made."""

from typing import Any

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import IterableDataset, MapDataPipe, _utils, default_collate

from vramkit._core import stream_copy
from vramkit.errors import InvalidArgumentError, SystemCallError
from vramkit.loader._arena import Arena
from vramkit.loader._array_iterator import ArrayIterator
from vramkit.loader._arrays import find_arrays
from vramkit.loader._columns import NotArraysError, columns_of
from vramkit.loader._device import most_outstanding
from vramkit.loader._gathering import Gathering
from vramkit.loader._local_fetch import InlineIterator, make_fetch
from vramkit.loader._runtime import Runtime
from vramkit.loader._stream_collate import stack_privately
from vramkit.loader._threads import ThreadIterator
from vramkit.loader._worker_iterator import StagedWorkers, TorchWorkers

_collate: Any = _utils.collate


def make_source(
    loader: Any, runtime: Runtime, states: dict[int, bytes] | None = None, first_worker: int = 0
) -> Any:
    """Return the iterator that makes the batches, and note in ``runtime`` which it is.

    Args:
        loader: The loader, or a view of it.
        runtime: What it holds.
        states: What an iterable dataset goes on from, by worker.
        first_worker: The worker that makes the first batch.
    """
    structure, reason = _arrays_of(loader)
    runtime.reason = reason
    if not reason:
        runtime.path = "arrays"
        registered = runtime.register(columns_of(structure)) if runtime.on_gpu else None
        gathering = Gathering(structure, runtime.own_arena(), registered)
        slots = _delivered(runtime) if runtime.on_gpu else 0
        return ArrayIterator(loader, gathering, runtime.delivery().depth, slots)
    if loader.num_workers == 0:
        runtime.path = "inline"
        arena = _staging_for(0, runtime)
        return InlineIterator(loader, arena, stream_copy, (states or {}).get(0))
    loader.check_worker_number_rationality()
    if loader.workers == "thread":
        return _threads(loader, runtime)
    return _processes(loader, runtime, states, first_worker)


def _staging_for(tasks: int, runtime: Runtime) -> Arena | None:
    """Staging memory for batches that this process makes, where they go to a GPU."""
    if not runtime.on_gpu:
        return None
    arena = runtime.own_arena()
    arena.expect(tasks + _delivered(runtime))
    return arena


def _delivered(runtime: Runtime) -> int:
    """How many slots hold batches that were made: one arrives, the others are being copied."""
    return most_outstanding(runtime.delivery().depth) + 1


def _threads(loader: Any, runtime: Runtime) -> Any:
    if isinstance(loader.dataset, IterableDataset) and loader.num_workers > 1:
        raise InvalidArgumentError(
            f"workers='thread' with num_workers={loader.num_workers} would yield an iterable data "
            "set that many times: threads share it, and get_worker_info() is None in them. Use "
            "num_workers=1, or workers='process'"
        )
    runtime.path = "threads"
    arena = _staging_for(loader.num_workers * (loader.prefetch_factor or 0), runtime)
    return ThreadIterator(loader, lambda: make_fetch(loader, arena, stream_copy))


def _processes(
    loader: Any, runtime: Runtime, states: dict[int, bytes] | None, first_worker: int
) -> Any:
    try:
        arena = runtime.arena()
    except SystemCallError as err:
        runtime.path, runtime.reason = "torch", str(err)
        runtime.warn_once(
            f"vramkit.DataLoader uses PyTorch's own way between processes, which is slower: {err}"
        )
        return TorchWorkers(loader)
    runtime.path = "workers"
    spare = _delivered(runtime)
    return StagedWorkers(loader, arena, runtime.tally, states, first_worker, spare)


def _arrays_of(loader: TorchDataLoader[Any]) -> tuple[Any, str]:
    """Return the arrays of the loader's dataset, or why they are not gathered."""
    reason = _obstacle(loader)
    if reason:
        return None, reason
    try:
        return find_arrays(loader.dataset), ""
    except NotArraysError as err:
        return None, str(err)


def _obstacle(loader: Any) -> str:
    functions = _collate.default_collate_fn_map
    if isinstance(loader.dataset, IterableDataset):
        return "an IterableDataset is iterated, not indexed"
    if isinstance(loader.dataset, MapDataPipe):
        return "a DataPipe makes its samples by Python code"
    if not loader._auto_collation:
        return "batch_size=None: the dataset makes the batches"
    if loader.collate_fn is not default_collate:
        return "collate_fn is not default_collate"
    if loader.worker_init_fn is not None:
        return "worker_init_fn has to run in workers"
    if functions.get(torch.Tensor) not in (_collate.collate_tensor_fn, stack_privately):
        return "default_collate_fn_map has another function for tensors"
    if loader.num_workers == 0 and loader.timeout:
        return "timeout without workers"
    if loader.num_workers and not loader.prefetch_factor:
        return "prefetch_factor=0"
    return ""
