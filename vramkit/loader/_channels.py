"""What the parent and its workers say to each other: small messages over one pipe each way.

These take the places of the queues of PyTorch's iterator. A batch is in its slot when its message
is sent; the message says which slot. A worker that dies in the middle leaves no lock behind.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import pickle
import queue
import select
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data._utils.worker import _ResumeIteration

from vramkit.errors import SystemCallError
from vramkit.loader._arena import Arena, Lease
from vramkit.loader._failures import ArrivalFailure, WorkerFailure
from vramkit.loader._packing import Packed, Unpacked
from vramkit.loader._staged import Staged

# All ends of pipes in this process. A forked worker closes those that are not its own, so that
# each pipe ends when the process at its other end does. Held here, none is closed by the garbage
# collector before the iterator that it belongs to.
_open_ends: set[Connection] = set()

# The kinds of a worker's messages. A batch is pickled, or its layout is; the layout of an earlier
# batch is named by its number. Control is what PyTorch's iterator acts on, such as exceptions.
# A batch of which a part went PyTorch's way has handles of memory that only a living worker gives.
PICKLED, BY_TORCH, NEW_LAYOUT, LAYOUT, CONTROL = range(5)

# What all messages that wait in one pipe may take together: a writer must never wait for a reader.
_PIPE_BYTES = 32 << 10
_PAGE = mmap.PAGESIZE


def remember_end(end: Connection) -> None:
    """Note an end of a pipe of this process."""
    _open_ends.add(end)


def close_end(end: Connection) -> None:
    """Close an end of a pipe."""
    _open_ends.discard(end)
    end.close()


def close_other_ends(*own: Connection) -> None:
    """In a worker that was forked, close every inherited end but its own."""
    for end in list(_open_ends):
        if not any(end is each for each in own):
            end.close()
    _open_ends.clear()


def _room_in(pipe: Connection) -> int:
    """What messages may take in a pipe together; users with many pipes get smaller ones.

    A message that does not fit into the rest of the last page begins another one, so half of the
    pages may hold nothing. With a single page there is no telling: messages go one at a time.
    """
    size = fcntl.fcntl(pipe.fileno(), fcntl.F_GETPIPE_SZ)
    return min(_PIPE_BYTES, size // 2 - _PAGE // 8) if size >= 2 * _PAGE else 0


def inline_limit(outstanding: int) -> int:
    """The largest content that may travel in a message itself."""
    return max(128, _PIPE_BYTES // (outstanding + 2))


@dataclass(slots=True)
class Tally:
    """What the parent has learnt from the workers' messages."""

    fetch_s: float = 0.0
    staged_bytes: int = 0
    refused_batches: int = 0
    last_refusal: str = ""


@dataclass(slots=True)
class Exchange:
    """What all channels of one iterator share in the parent."""

    arena: Arena
    inline_bytes: int
    tally: Tally
    # The slots that workers are filling.
    assigned: dict[int, Lease] = field(default_factory=dict)
    # The channels of all workers' tasks.
    tasks: "weakref.WeakValueDictionary[int, IndexChannel]" = field(
        default_factory=weakref.WeakValueDictionary
    )


class IndexChannel:
    """The parent's end of the tasks of one worker, in the place of an index queue."""

    def __init__(self, exchange: Exchange, worker: int, writer: Connection) -> None:
        self._exchange = exchange
        self._worker = worker
        self._writer = writer
        self._room_bytes = _room_in(writer)
        # Sizes of the messages that the worker has not answered, and those that wait for their
        # turn: a full pipe would block this process, which the worker may be waiting for.
        self._unanswered: deque[int] = deque()
        self._backlog: deque[bytes] = deque()
        exchange.tasks[worker] = self

    def put(self, task: Any) -> None:
        """Send a task, with a slot for its batch, or one of PyTorch's signals."""
        if not isinstance(task, tuple):
            # What the worker has not been sent is of an epoch that is over.
            self._backlog.clear()
            self._write(pickle.dumps((task, -1, 0, None), pickle.HIGHEST_PROTOCOL))
            return
        number, index = task
        content = bytes(ForkingPickler.dumps(index))
        lease = self._exchange.arena.lease(self._worker)
        slot = lease.slot
        where: int | None = None
        if len(content) > self._exchange.inline_bytes:
            self._exchange.arena.grow(slot, len(content))
            ctypes.memmove(slot.address, content, len(content))
            where = len(content)
        self._exchange.assigned[slot.index] = lease
        self._send((number, slot.index, slot.capacity, content if where is None else where))

    def _send(self, message: tuple[Any, ...]) -> None:
        self._backlog.append(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        self._flush()

    def _flush(self) -> None:
        while self._backlog:
            waiting = sum(self._unanswered)
            if waiting and waiting + len(self._backlog[0]) > self._room_bytes:
                return
            self._write(self._backlog.popleft())

    def _write(self, message: bytes) -> None:
        self._unanswered.append(len(message))
        # Like a queue, this does not tell whether the worker lives: PyTorch's iterator looks.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._writer.send_bytes(message)

    def answered(self) -> None:
        """Note a result of the worker, which makes room for another task."""
        if self._unanswered:
            self._unanswered.popleft()
        self._flush()

    def resumed(self) -> None:
        """Free what tasks hold that the worker has skipped since its stream had ended."""
        self._unanswered.clear()
        assigned = self._exchange.assigned
        for index, lease in list(assigned.items()):
            if lease.slot.worker == self._worker:
                del assigned[index]

    def cancel_join_thread(self) -> None:
        """There is no thread to join."""

    def close(self) -> None:
        """Close the pipe; the worker sees its end."""
        close_end(self._writer)


def _always(worker: int) -> bool:  # noqa: ARG001
    return True


class _Layout:
    """What a worker has described, unpickled when it is first used.

    What cannot be unpickled fails again for the next such batch.
    """

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled
        self._structure: Any = None

    def structure(self) -> Any:
        if self._pickled:
            self._structure = pickle.loads(self._pickled)
            self._pickled = b""
        return self._structure


class ResultChannel:
    """The parent's end of all workers' results, in the place of the result queue."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._poll = select.poll()
        self._readers: dict[int, Connection] = {}
        self._workers: dict[int, int] = {}
        # What each worker has described, in the order of its numbers.
        self._layouts: dict[int, list[_Layout | None]] = {}
        self._ready: deque[int] = deque()
        # Told the number of a worker whose pipe has ended; returns whether it should not have.
        self.on_end: Callable[[int], bool] = _always

    def add(self, worker: int, reader: Connection) -> None:
        """Listen to one more worker."""
        self._readers[reader.fileno()] = reader
        self._workers[reader.fileno()] = worker
        self._layouts[worker] = []
        self._poll.register(reader.fileno(), select.POLLIN)

    def get(self, timeout: float) -> tuple[Any, Any]:
        """Return the next result: a task's number and its batch, or a signal.

        Raises:
            queue.Empty: There was none in ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            if not self._ready:
                left = max(0.0, deadline - time.monotonic())
                self._ready.extend(fd for fd, _ in self._poll.poll(left * 1000))
            if not self._ready:
                raise queue.Empty
            fd = self._ready.popleft()
            try:
                message = self._readers[fd].recv_bytes()
            except (EOFError, ConnectionResetError):
                self._forget(fd)
                if self.on_end(self._workers[fd]):
                    # PyTorch's iterator looks for dead workers now.
                    raise queue.Empty from None
                continue
            return self._read(self._workers[fd], message)

    def pending(self) -> bool:
        """Whether a result or the end of a worker waits to be read."""
        if not self._ready:
            self._ready.extend(fd for fd, _ in self._poll.poll(0))
        return bool(self._ready)

    def _forget(self, fd: int) -> None:
        self._poll.unregister(fd)
        close_end(self._readers.pop(fd))

    def _read(self, worker: int, message: bytes) -> tuple[Any, Any]:
        number, slot, capacity, used_bytes, content, kind, seconds, refusal, state = pickle.loads(
            message
        )
        exchange = self._exchange
        lease = exchange.assigned.pop(slot, None)
        exchange.tasks[worker].answered()
        exchange.tally.fetch_s += seconds
        if refusal:
            exchange.tally.refused_batches += 1
            exchange.tally.last_refusal = refusal
        if kind == CONTROL:
            number = ForkingPickler.loads(number)
            if isinstance(number, _ResumeIteration):
                exchange.tasks[worker].resumed()
            try:
                if lease is not None:
                    content = self._content(lease, capacity, content)
                return number, ForkingPickler.loads(content)
            except SystemCallError as err:
                return number, ArrivalFailure(err)
        exchange.tally.staged_bytes += used_bytes
        if lease is None:
            raise AssertionError(f"a worker names slot {slot}, which was not lent to it")
        if kind == NEW_LAYOUT:
            # Whatever happens now, the worker counts it.
            known = _Layout(content) if isinstance(content, bytes) else None
            self._layouts[worker].append(known)
        try:
            content = self._content(lease, capacity, content)
            batch = self._batch(worker, kind, lease, content, used_bytes)
        except Exception as err:  # noqa: BLE001 - the user's own unpickling code, among others
            return number, ArrivalFailure(err)
        if state is not None:
            batch.state = (worker, state)
        return number, batch

    def _content(self, lease: Lease, capacity: int, content: Any) -> Any:
        """Map the slot as the worker has left it; return what the message stands for."""
        if capacity:
            self._exchange.arena.map(lease.slot, capacity)
        if not isinstance(content, tuple):
            return content
        offset, size = content
        return ctypes.string_at(lease.slot.address + offset, size)

    def _batch(
        self, worker: int, kind: int, lease: Lease, content: Any, used_bytes: int
    ) -> Packed | Staged | Unpacked:
        if kind == PICKLED:
            return Packed(lease, content, used_bytes)
        if kind == BY_TORCH:
            # Handles are opened while the worker that made them is alive.
            return Unpacked(Packed(lease, content, used_bytes).unpack())
        layouts = self._layouts[worker]
        if kind == NEW_LAYOUT:
            layouts[-1] = layouts[-1] or _Layout(content)
            content = -1
        layout = layouts[content]
        if layout is None:
            raise SystemCallError(
                errno.ENOMEM, "the description of such batches was lost for want of memory"
            )
        return Staged(lease, layout.structure(), used_bytes)

    def cancel_join_thread(self) -> None:
        """There is no thread to join."""

    def close(self) -> None:
        """Stop listening."""
        for fd in list(self._readers):
            self._forget(fd)
        self._ready.clear()


def describe_failure(data: object, error: BaseException | None) -> object:
    """Return what is sent for an exception: PyTorch's wrapper, with the exception if it travels."""
    if isinstance(data, ExceptionWrapper) and error is not None:
        return WorkerFailure.of(data, error)
    return data
