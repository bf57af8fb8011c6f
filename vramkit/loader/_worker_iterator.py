"""PyTorch's multi-process iterator, with slots of shared memory in the place of its queues."""

import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import _utils
from torch.utils.data import dataloader as _torch

from vramkit.loader import _worker
from vramkit.loader._arena import Arena
from vramkit.loader._channels import (
    Exchange,
    IndexChannel,
    ResultChannel,
    Tally,
    inline_limit,
    remember_end,
)
from vramkit.loader._forks import Workers, starting_workers
from vramkit.loader._quick_next import QuickNext
from vramkit.loader._taken import TakenFromWorkers
from vramkit.loader._view import View

_TorchIterator: Any = _torch._MultiProcessingDataLoaderIter


class _Context:
    """A multiprocessing context whose queues are channels and whose processes use them."""

    def __init__(self, real: Any, exchange: Exchange, slots: int, states: dict[int, bytes]) -> None:
        self._real = real
        self._states = states
        self._exchange = exchange
        self._slots = slots
        self.results: ResultChannel | None = None
        self._worker_ends: list[_worker.WorkerEnd] = []
        self._tasks: list[IndexChannel] = []

    def Queue(self) -> Any:  # noqa: N802 - the name in a multiprocessing context
        """Make the result channel first, then the tasks of one worker after another."""
        if self.results is None:
            self.results = ResultChannel(self._exchange)
            return self.results
        task_reader, task_writer = self._real.Pipe(duplex=False)
        result_reader, result_writer = self._real.Pipe(duplex=False)
        for pipe in (task_reader, task_writer, result_reader, result_writer):
            remember_end(pipe)
        end = _worker.WorkerEnd(
            task_reader,
            result_writer,
            self._exchange.arena.fd,
            self._exchange.arena.budget_bytes // self._slots,
            self._slots,
            self._exchange.inline_bytes,
            self._states.get(len(self._worker_ends)),
        )
        self._worker_ends.append(end)
        self.results.add(len(self._worker_ends) - 1, result_reader)
        channel = IndexChannel(self._exchange, len(self._worker_ends) - 1, task_writer)
        self._tasks.append(channel)
        return channel

    def Event(self) -> Any:  # noqa: N802 - the name in a multiprocessing context
        return self._real.Event()

    def Process(self, *, target: object, args: tuple[Any, ...]) -> Any:  # noqa: ARG002, N802
        kept = [each for each in args if not isinstance(each, (IndexChannel, ResultChannel))]
        return self._real.Process(target=_worker.run, args=(self._worker_ends[-1], kept))

    def close_worker_ends(self) -> None:
        """In the parent, once all workers have started."""
        for end in self._worker_ends:
            end.close()

    def close(self) -> None:
        """Close all that is open in the parent."""
        self.close_worker_ends()
        for channel in self._tasks:
            channel.close()
        if self.results is not None:
            self.results.close()


def _weakly(method: Callable[[int], bool]) -> Callable[[int], bool]:
    """A method that does not keep its object alive: an iterator ends with its last reference."""
    held = weakref.WeakMethod(method)

    def call(worker: int) -> bool:
        found = held()
        return found is not None and found(worker)

    return call


class TorchWorkers(TakenFromWorkers, _TorchIterator):  # type: ignore[misc]
    """PyTorch's multi-process iterator, as it is."""


class StagedWorkers(TakenFromWorkers, QuickNext, _TorchIterator):  # type: ignore[misc]
    """Yields batches of worker processes, packed in slots.

    Order, seeds, prefetching, persistent workers, timeouts and all errors are PyTorch's: this
    class replaces what carries the tasks and the batches.

    Args:
        loader: The loader, or a view of it.
        arena: The slots.
        tally: Counts what workers tell.
        states: What the workers' copies of an iterable dataset go on from, by worker.
        first_worker: The worker that gets the first task.
        spare_slots: Slots that hold batches while they are delivered.
    """

    def __init__(
        self,
        loader: TorchDataLoader[Any],
        arena: Arena,
        tally: Tally,
        states: dict[int, bytes] | None = None,
        first_worker: int = 0,
        spare_slots: int = 0,
    ) -> None:
        self._shutdown = True
        prefetch = loader.prefetch_factor or 0
        tasks = prefetch * loader.num_workers
        self._pid = os.getpid()
        self._exchange = Exchange(arena, inline_limit(tasks), tally)
        real = loader.multiprocessing_context or torch.multiprocessing
        self._context = _Context(real, self._exchange, tasks + 1, states or {})
        self._first_worker = first_worker
        arena.trim(tasks + spare_slots)
        pins = loader.pin_memory and not torch.accelerator.is_available()
        view = View(loader, multiprocessing_context=self._context, pin_memory=pins)
        workers = Workers()
        try:
            with starting_workers(workers):
                super().__init__(view)
        finally:
            workers.processes = list(self._live_workers())
        self._profile_name = "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__"

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        if first_iter:
            self._context.close_worker_ends()
            self._worker_result_queue.on_end = _weakly(self._ended_early)
        super()._reset(loader, first_iter)

    def _try_put_index(self) -> None:
        while self._first_worker:
            self._first_worker -= 1
            next(self._worker_queue_idx_cycle)
        super()._try_put_index()

    def ready(self) -> bool:
        """Whether the next batch is there; reads what has arrived and never waits."""
        if not self._in_order:
            return bool(self._rcvd_idx < self._send_idx and self._worker_result_queue.pending())
        while len(self._task_info.get(self._rcvd_idx, ())) < 2:
            if not self._worker_result_queue.pending():
                return False
            arrived, result = self._try_get_data(0)
            if arrived:
                self._note(*result)
        return True

    def _note(self, number: int, data: Any) -> None:
        """Do what PyTorch's iterator does with a result that is not asked for yet."""
        self._tasks_outstanding -= 1
        if isinstance(data, _utils.worker._IterableDatasetStopIteration):
            if self._persistent_workers:
                self._workers_status[data.worker_id] = False
            else:
                self._mark_worker_as_unavailable(data.worker_id)
            self._try_put_index()
            return
        self._task_info[number] += (data,)

    def _ended_early(self, worker: int) -> bool:
        if not self._workers_status[worker]:
            return False
        self._workers[worker].join(timeout=1)
        return not self._workers[worker].is_alive()

    def _shutdown_workers(self) -> None:
        if os.getpid() != self._pid:
            return
        if not hasattr(self, "_workers_status"):
            # It failed, or was interrupted, while workers were started.
            for worker in self._live_workers():
                worker.terminate()
                worker.join()
            self._close_channels()
            return
        try:
            super()._shutdown_workers()
        finally:
            if self._shutdown and not any(each.is_alive() for each in self._live_workers()):
                self._close_channels()

    def _live_workers(self) -> list[Any]:
        return getattr(self, "_workers", [])

    def _close_channels(self) -> None:
        self._context.close()
        # Nobody writes into these slots any more.
        self._exchange.assigned.clear()

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the process modules may be gone; workers end with their parent.
        if not is_ending():
            self._shutdown_workers()
