"""Worker threads that yield what they fetch in the order in which it was asked for."""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from torch.utils.data import dataloader as _torch

_TorchIterator: Any = _torch._BaseDataLoaderIter


class _Task:
    """A batch that a thread is to fetch."""

    __slots__ = ("done", "error", "index", "value")

    def __init__(self, index: Any) -> None:
        self.index = index
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self, fetch: Callable[[Any], Any]) -> None:
        try:
            self.value = fetch(self.index)
        except BaseException as err:  # noqa: BLE001 - raised where the batch is asked for
            self.error = err


class _Crew:
    """Threads that take tasks from one queue. They end when told to or with the process."""

    def __init__(
        self, count: int, fetch: Callable[[Any], Any], init: Callable[[int], None] | None
    ) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self.fetch = fetch
        self._init = init
        self.finished = threading.Semaphore(0)
        self._closed = False
        self._threads = [
            threading.Thread(
                target=self._work, args=(worker,), name=f"vramkit-loader-{worker}", daemon=True
            )
            for worker in range(count)
        ]
        for thread in self._threads:
            thread.start()

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
            elif not self._closed:
                task.run(self.fetch)
            task.done.set()
            self.finished.release()
            del task

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)


class ThreadIterator(_TorchIterator):  # type: ignore[misc]
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
        self._crew = _Crew(loader.num_workers, make_fetch(), loader.worker_init_fn)
        self._waiting: deque[_Task] = deque()
        self._reset(loader, first_iter=True)

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        self._waiting.clear()
        if not first_iter:
            self._crew.fetch = self._make_fetch()
        self._fill()

    def _fill(self) -> None:
        while len(self._waiting) < self._most:
            try:
                task = _Task(self._next_index())
            except StopIteration:
                return
            self._waiting.append(task)
            self._crew.submit(task)

    def ready(self) -> bool:
        """Whether the next batch is there."""
        if self._in_order:
            return bool(self._waiting) and self._waiting[0].done.is_set()
        return any(task.done.is_set() for task in self._waiting)

    def _next_data(self) -> Any:
        if not self._waiting:
            raise StopIteration
        task = self._next_task()
        self._waiting.remove(task)
        if task.error is not None:
            self._fill()
            raise task.error
        self._fill()
        return task.value

    def _next_task(self) -> _Task:
        timeout = self._timeout or None
        if self._in_order:
            if not self._waiting[0].done.wait(timeout):
                raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")
            return self._waiting[0]
        while True:
            for task in self._waiting:
                if task.done.is_set():
                    return task
            if not self._crew.finished.acquire(timeout=timeout):
                raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")

    def _shutdown_workers(self) -> None:
        crew = getattr(self, "_crew", None)
        if crew is not None:
            crew.close()

    def __del__(self) -> None:
        self._shutdown_workers()
