"""A worker process: PyTorch's own loop, which writes its batches into slots."""

import contextlib
import os
import pickle
import queue
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import Subset, _DatasetKind, _utils, default_collate

from vramkit._core import stream_copy
from vramkit.loader import _dataset_state
from vramkit.loader._channels import (
    BY_TORCH,
    CONTROL,
    LAYOUT,
    NEW_LAYOUT,
    PICKLED,
    close_end,
    close_other_ends,
    describe_failure,
)
from vramkit.loader._layouts import Layouts
from vramkit.loader._packing import Packer
from vramkit.loader._slot_writer import SlotWriter
from vramkit.loader._stream_collate import (
    StreamingCollate,
    collate_into,
    stack_privately,
)

_collate: Any = _utils.collate
_signals: Any = _utils.worker


class WorkerEnd:
    """What one worker gets from the parent.

    Args:
        tasks: The reading end of its tasks.
        results: The writing end of its results.
        fd: The memory file of the slots.
        limit_bytes: The most memory that one slot may take.
        slots: How many slots share staging memory.
        inline_bytes: The largest content that may travel in a message itself.
        dataset_state: Where the worker's copy of the dataset is to go on.
    """

    def __init__(
        self,
        tasks: Connection,
        results: Connection,
        fd: int,
        limit_bytes: int,
        slots: int,
        inline_bytes: int,
        dataset_state: bytes | None = None,
    ) -> None:
        self.tasks, self.results = tasks, results
        self.dataset_state = dataset_state
        self.fd: int | Any = fd
        self.limit_bytes, self.slots, self.inline_bytes = limit_bytes, slots, inline_bytes
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        # Pickled only while a process is spawned.
        return self.__dict__ | {"fd": DupFd(self.fd)}

    def open(self) -> SlotWriter:
        """In the worker: close what is not its own, and open the slots."""
        if isinstance(self.fd, int):
            close_other_ends(self.tasks, self.results)
            fd = os.dup(self.fd)
        else:
            fd = self.fd.detach()
        return SlotWriter(fd, self.limit_bytes, stream_copy, self.slots)

    def close(self) -> None:
        """In the parent: the worker has its own copies now."""
        close_end(self.tasks)
        close_end(self.results)


class _Tasks:
    """The worker's end in the place of PyTorch's index queue."""

    def __init__(self, reader: Connection, writer: SlotWriter) -> None:
        self._reader = reader
        self._writer = writer

    def get(self, timeout: float) -> Any:
        if not self._reader.poll(timeout):
            raise queue.Empty
        try:
            message = self._reader.recv_bytes()
        except (EOFError, ConnectionResetError):
            # The parent is gone. The loop looks for its process, which may end a moment later.
            time.sleep(0.05)
            raise queue.Empty from None
        number, slot, capacity, content = pickle.loads(message)
        if slot < 0:
            return number
        self._writer.begin(slot, capacity)
        if isinstance(content, int):
            content = self._writer.read(0, content)
        return number, ForkingPickler.loads(content)


class _Results:
    """The worker's end in the place of PyTorch's result queue."""

    def __init__(self, end: WorkerEnd, writer: SlotWriter, fetches: "_Fetches") -> None:
        self._pipe = end.results
        self._inline_bytes = end.inline_bytes
        self._writer = writer
        self._packer = Packer(writer)
        self._layouts = Layouts(writer)
        self._fetches = fetches

    def put(self, result: tuple[Any, Any]) -> None:
        number, data = result
        seconds, error = self._fetches.take()
        kind = PICKLED
        content: Any = b""
        is_batch = not isinstance(data, (ExceptionWrapper, _signals._IterableDatasetStopIteration))
        is_batch = is_batch and isinstance(number, int)
        state = None
        if is_batch:
            try:
                # First, since a layout that has been made must be sent.
                state = self._fetches.dataset_state()
                placed = self._layouts.place(data)
                if placed is None:
                    content = self._packer.pack(data)
                    kind = BY_TORCH if self._packer.by_torch else PICKLED
                elif placed[1]:
                    kind, content = NEW_LAYOUT, placed[0].pickled
                else:
                    kind, content = LAYOUT, placed[0].number
            except Exception as err:  # noqa: BLE001 - the user's own pickling code
                data = ExceptionWrapper(where=f"in DataLoader worker process {_worker_id()}")
                is_batch, error = False, err
        if not is_batch:
            kind = CONTROL
            content = bytes(ForkingPickler.dumps(describe_failure(data, error)))
            number = bytes(ForkingPickler.dumps(number))
            state = None
        self._send(number, content, kind, seconds, state)

    def _send(
        self, number: Any, content: bytes | int, kind: int, seconds: float, state: bytes | None
    ) -> None:
        writer = self._writer
        where: bytes | int | tuple[int, int] = content
        used_bytes = writer.used_bytes
        if isinstance(content, bytes) and len(content) > self._inline_bytes:
            offset = writer.write(content)
            where = content if offset is None else (offset, len(content))
        slot, capacity = writer.current
        message = (number, slot, capacity, used_bytes, where, kind, seconds, writer.refusal, state)
        # A parent that has ended reads no more; the loop finds out.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        writer.end()

    def cancel_join_thread(self) -> None:
        pass

    def close(self) -> None:
        self._pipe.close()


def _worker_id() -> int:
    info = torch.utils.data.get_worker_info()
    return -1 if info is None else info.id


class _Fetches:
    """Measures the fetches of a worker and keeps the exception of the last one.

    Args:
        state: What an iterable dataset goes on from, in the first epoch.
    """

    def __init__(self, state: bytes | None) -> None:
        self._state = state
        self._seconds = 0.0
        self._error: BaseException | None = None
        # PyTorch's fetcher of an iterable dataset.
        self.fetcher: Any = None
        self.running = False

    def resume(self, fetcher: Any) -> None:
        self.fetcher = fetcher
        if self._state is not None:
            _dataset_state.give_back(self._state, fetcher)
            self._state = None

    def dataset_state(self) -> bytes | None:
        return _dataset_state.take(self.fetcher)

    def run(self, fetch: Callable[[Any], Any], index: Any) -> Any:
        begin = time.perf_counter()
        self.running = True
        try:
            return fetch(index)
        except Exception as err:
            self._error = err
            raise
        finally:
            self.running = False
            self._seconds = time.perf_counter() - begin

    def take(self) -> tuple[float, BaseException | None]:
        taken = (self._seconds, self._error)
        self._seconds, self._error = 0.0, None
        return taken


class _MeasuredFetcher:
    """A fetcher of PyTorch's, measured."""

    def __init__(self, fetch: Callable[[Any], Any], fetches: _Fetches) -> None:
        self._fetch = fetch
        self._fetches = fetches

    def fetch(self, index: Any) -> Any:
        return self._fetches.run(self._fetch, index)


class _StreamingFetcher:
    """Fetches the samples of a map-style dataset one by one into their batch."""

    def __init__(self, get: Callable[[Any], Any], collate: StreamingCollate) -> None:
        self._get = get
        self._collate = collate

    def fetch(self, index: Any) -> Any:
        if not isinstance(index, (list, tuple)) or not index:
            return default_collate([self._get(each) for each in index])
        return self._collate(map(self._get, index), len(index))


def _sample_getter(dataset: Any) -> Callable[[Any], Any] | None:
    """How single samples are got, or None if the dataset fetches batches itself."""
    if type(dataset) is Subset:
        inner = _sample_getter(dataset.dataset)
        indices = dataset.indices
        return None if inner is None else lambda each: inner(indices[each])
    if getattr(dataset, "__getitems__", None):
        return None
    return lambda each: dataset[each]


def _install_fetchers(own_dataset: Any, writer: SlotWriter, fetches: _Fetches) -> None:
    """Make PyTorch's loop, in this worker process, use the slots."""
    create = _DatasetKind.create_fetcher

    def create_fetcher(
        kind: int, dataset: Any, auto_collation: bool, collate_fn: Any, drop_last: bool
    ) -> Any:
        if dataset is not own_dataset or fetches.running:
            # Of a loader that the dataset has made for itself.
            return create(kind, dataset, auto_collation, collate_fn, drop_last)  # type: ignore[no-untyped-call]
        get = None
        if collate_fn is default_collate:
            # Only here: what the dataset's own code collates, it may keep.
            collate_fn = collate_into(writer)
            get = _sample_getter(dataset) if auto_collation else None
        if kind == _DatasetKind.Map and get is not None:
            fetch = _StreamingFetcher(get, StreamingCollate(writer, collate_fn)).fetch
        else:
            torchs: Any = create(kind, dataset, auto_collation, collate_fn, drop_last)  # type: ignore[no-untyped-call]
            fetch = torchs.fetch
            fetches.resume(torchs)
        return _MeasuredFetcher(fetch, fetches)

    _DatasetKind.create_fetcher = staticmethod(create_fetcher)  # type: ignore[method-assign]
    functions = _collate.default_collate_fn_map
    if functions.get(torch.Tensor) is _collate.collate_tensor_fn:
        functions[torch.Tensor] = stack_privately


def run(end: WorkerEnd, arguments: list[Any]) -> None:
    """Run a worker: PyTorch's loop with the slots in the place of its queues.

    Args:
        end: What the parent made for this worker.
        arguments: Those of PyTorch's loop, without the two queues.
    """
    writer = end.open()
    fetches = _Fetches(end.dataset_state)
    kind, dataset, *rest = arguments
    _install_fetchers(dataset, writer, fetches)
    tasks, results = _Tasks(end.tasks, writer), _Results(end, writer, fetches)
    _signals._worker_loop(kind, dataset, tasks, results, *rest)
