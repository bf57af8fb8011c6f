"""Worker threads that yield what they fetch in the order in which it was asked for."""

import atexit
import os
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any

from torch.utils.data import dataloader as _torch

from vramkit.errors import LoaderClosedError
from vramkit.loader._quick_next import QuickNext
from vramkit.loader._taken import Taken

_TorchIterator: Any = _torch._BaseDataLoaderIter


class _Task:
    """A batch that a thread is to fetch."""

    __slots__ = ("done", "error", "fetch", "index", "is_wanted", "number", "value")

    def __init__(self, number: int, index: Any, fetch: Callable[[Any], Any]) -> None:
        self.number, self.index = number, index
        # Of the epoch that asks for the batch: another may have begun when its turn comes.
        self.fetch = fetch
        self.is_wanted = True
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


def _outcome(fetch: Callable[[Any], Any], index: Any) -> tuple[Any, BaseException | None]:
    """Fetch a batch; returns it, or what was raised.

    No variable here holds the task: the exception's traceback holds this frame.
    """
    try:
        return fetch(index), None
    except BaseException as err:  # noqa: BLE001 - raised where the batch is asked for
        return None, err


class _Crew:
    """Threads that take tasks from one queue. They end when told to or with the process."""

    def __init__(self, count: int, init: Callable[[int], None] | None) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._init = init
        self.process = os.getpid()
        self.finished = threading.Semaphore(0)
        self._closed = False
        self._threads = [
            threading.Thread(
                target=self._work, args=(worker,), name=f"vramkit-loader-{worker}", daemon=True
            )
            for worker in range(count)
        ]
        _crews.add(self)
        try:
            for thread in self._threads:
                thread.start()
                _running.add(thread)
        except BaseException:
            # No more threads can be started, or it was interrupted.
            self.close()
            raise

    def submit(self, task: _Task) -> None:
        self._tasks.put(task)

    def _work(self, worker: int) -> None:
        failed: BaseException | None = None
        try:
            if self._init is not None:
                self._init(worker)
        except BaseException as err:  # noqa: BLE001 - raised where the batch is asked for
            failed = err
        while (task := self._tasks.get()) is not None:
            if failed is not None:
                task.error = failed
            elif task.is_wanted and not self._closed:
                task.value, task.error = _outcome(task.fetch, task.index)
            task.done.set()
            self.finished.release()
            del task
        # For the next one.
        self._tasks.put(None)

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        self._closed = True
        self._tasks.put(None)

    def join(self) -> None:
        """Wait until the threads have ended, unless the dataset keeps one for too long."""
        if os.getpid() == self.process:
            _join(self._threads)


def _join(threads: Iterable[threading.Thread]) -> None:
    deadline = time.monotonic() + _JOINED_S
    # A thread may be what drops the last reference to its loader.
    others = [each for each in threads if each is not threading.current_thread()]
    for thread in others:
        # One that was never started has no end to wait for.
        if thread.ident is None:
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in others if thread.is_alive()]
    if left:
        warnings.warn(
            f"{len(left)} of {len(others)} worker threads of a DataLoader have not ended after "
            f"{_JOINED_S:g} s, because the dataset has not returned ({', '.join(left)}); they end "
            "when it does",
            RuntimeWarning,
            stacklevel=2,
        )


def _at_exit() -> None:
    """Threads that still run while the interpreter ends would abort the process."""
    for crew in list(_crews):
        crew.close()
    _join([thread for thread in list(_running) if thread.is_alive()])


# As long as PyTorch waits for worker processes.
_JOINED_S = 5.0
_crews: "weakref.WeakSet[_Crew]" = weakref.WeakSet()
# Their crews may be gone before them.
_running: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()
atexit.register(_at_exit)


class ThreadIterator(Taken, QuickNext, _TorchIterator):  # type: ignore[misc]
    """Yields batches that threads of this process fetch.

    Args:
        loader: The loader.
        make_fetch: Returns, for each epoch, what fetches and collates the batch of one index; all
            threads call it.
    """

    def __init__(self, loader: Any, make_fetch: Callable[[], Callable[[Any], Any]]) -> None:
        super().__init__(loader)
        self._in_order = loader.in_order
        self._most = loader.prefetch_factor * loader.num_workers
        self._make_fetch = make_fetch
        self._crew = _Crew(loader.num_workers, loader.worker_init_fn)
        self._waiting: deque[_Task] = deque()
        self._reset(loader, first_iter=True)

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        self._abandon()
        self.taken = self._asked = 0
        self._fetch = self._make_fetch()
        self._fill()

    def _abandon(self) -> None:
        for task in self._waiting:
            task.is_wanted = False
        self._waiting.clear()

    def _fill(self) -> None:
        while len(self._waiting) < self._most:
            try:
                task = _Task(self._asked, self._next_index(), self._fetch)
            except StopIteration:
                return
            self._asked += 1
            self._waiting.append(task)
            self._crew.submit(task)

    def ready(self) -> bool:
        """Whether the next batch is there."""
        if self._in_order:
            return bool(self._waiting) and self._waiting[0].done.is_set()
        return any(task.done.is_set() for task in self._waiting)

    def _next_data(self) -> Any:
        if os.getpid() != self._crew.process:
            raise LoaderClosedError(
                "the threads of this iterator are in the process that forked this one; iterate the "
                "loader anew here"
            )
        if not self._waiting:
            raise StopIteration
        task = self._next_task()
        if not task.is_wanted:
            raise LoaderClosedError("the loader was closed while a batch was asked for")
        self._waiting.remove(task)
        self.take(task.number)
        self._fill()
        if task.error is None:
            return task.value
        # The traceback holds frames that hold the task, which must not hold the exception.
        error, task.error = task.error, None
        try:
            raise error
        finally:
            del error

    def _next_task(self) -> _Task:
        timeout = self._timeout or None
        if self._in_order:
            first = self._waiting[0]
            if not first.done.wait(timeout):
                raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")
            return first
        waiting = list(self._waiting)
        while True:
            for task in waiting:
                if task.done.is_set():
                    return task
            if not self._crew.finished.acquire(timeout=timeout):
                raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")

    def _shutdown_workers(self) -> None:
        """End the threads and wait for them: afterwards, they call the dataset no more."""
        self._crew.close()
        self._abandon()
        self._crew.join()

    def _leave_workers(self) -> None:
        """Let the threads end, and wait for nothing: a destructor may run in any of them."""
        crew = getattr(self, "_crew", None)
        if crew is not None:
            crew.close()

    def __del__(self) -> None:
        self._leave_workers()
