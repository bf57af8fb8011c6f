"""Copies of the loader: streaming copies, rows gathered by threads or the GPU, registered memory.

All addresses are integers, and their memory is borrowed: whoever calls keeps it alive.
"""

import array
import atexit
import contextlib
import ctypes
import functools
import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vramkit._core import _structs as s
from vramkit._core._checked import Address, Integer
from vramkit._core._library import call, invoke, library, raise_status
from vramkit.errors import ForkedPoolError, InvalidArgumentError

_HIGHEST = 2**64 - 1
_NO_TIMEOUT = -1
_DESTINATION = Integer("destination", ctypes.c_uint64)
_INDICES = Address("indices_address")
_COUNT = Integer("count", ctypes.c_uint64)
_DEVICE = Integer("device", ctypes.c_int32)
_STREAM = Integer("stream", ctypes.c_uint64)

_gatherers: "weakref.WeakSet[Gatherer]" = weakref.WeakSet()


@dataclass(frozen=True)
class Segment:
    """Rows of an array that lie in memory at a constant distance.

    Attributes:
        address: Of its first row.
        first_row: That row's number in the array: the rows of the segments before it.
        rows: How many it has.
    """

    address: int
    first_row: int
    rows: int


@dataclass(frozen=True)
class Piece:
    """An array of rows of equal size, in one or several segments.

    Attributes:
        segments: Sorted by first row, without gaps.
        row_bytes: Bytes of a row.
        row_stride_bytes: Bytes from the start of a row to that of the next one of its segment.
        destination: Address for the gathered rows; what :meth:`Plan.submit` is given counts there.
    """

    segments: Sequence[Segment]
    row_bytes: int
    row_stride_bytes: int
    destination: int = 0


class Gatherer:
    """A fixed set of native threads that copy rows; usable from any thread.

    It belongs to the process that created it: in a forked child its methods raise
    ``ForkedPoolError``, and it may be dropped there.

    Args:
        threads: How many; with 0, every job is done inside ``submit``.

    Raises:
        SystemCallError: The threads cannot be started.
        InvalidArgumentError: ``threads`` is negative or more than 1,024.
    """

    def __init__(self, threads: int) -> None:
        """Start the threads."""
        handle = ctypes.c_void_p()
        call("vramkit_gatherer_create", threads, ctypes.byref(handle))
        self.handle = handle.value or 0
        # At exit another thread may be in a method; then the gatherer is closed, and not freed.
        weakref.finalize(self, library().vramkit_gatherer_destroy, self.handle).atexit = False
        _gatherers.add(self)

    def submit(self, pieces: Sequence[Piece], indices_address: int, count: int) -> int:
        """Gather into each piece's own destination; see :meth:`Plan.submit`."""
        plan = Plan(pieces)
        return plan.submit(self, [piece.destination for piece in pieces], indices_address, count)

    def wait(self, ticket: int, timeout_s: float | None = None) -> bool:
        """Help with a job and return whether it is over; its ticket is then no longer known.

        Args:
            ticket: Of ``submit``.
            timeout_s: Seconds after which it returns False; None waits as long as it takes.

        Raises:
            PoolClosedError: The gatherer was closed before the job was over.
            InvalidArgumentError: The ticket is unknown or was waited for, or the time is NaN.
        """
        if ticket == 0:
            return True
        is_over = ctypes.c_int32()
        limit_ns = _nanoseconds(timeout_s)
        call("vramkit_gatherer_wait", self.handle, ticket, limit_ns, ctypes.byref(is_over))
        return bool(is_over.value)

    def done(self, ticket: int) -> bool:
        """Whether a job is over, without waiting; its ticket stays known.

        Raises:
            PoolClosedError: The gatherer is closed.
            InvalidArgumentError: The ticket is unknown or was waited for.
        """
        if ticket == 0:
            return True
        is_over = ctypes.c_int32()
        call("vramkit_gatherer_done", self.handle, ticket, ctypes.byref(is_over))
        return bool(is_over.value)

    def close(self) -> None:
        """Abandon the jobs that are not over and end the threads; nothing is copied afterwards."""
        call("vramkit_gatherer_close", self.handle)


class Plan:
    """Arrays that are gathered together, checked once and used for any number of jobs.

    Immutable, so that any thread may use it. The memory of the rows is borrowed until the last job
    on it is over.

    Args:
        pieces: The arrays.

    Raises:
        InvalidArgumentError: Segments leave rows out or overlap, an address is null, an array does
            not fit the address space, or an integer is out of range.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """Check the pieces and copy them into the core."""
        converted = [_to_c(piece) for piece in pieces]
        structs = (s.Piece * len(converted))(*converted)
        handle = ctypes.c_void_p()
        call("vramkit_gather_plan_create", structs, len(converted), ctypes.byref(handle))
        self._handle = handle.value
        self._submit: Callable[..., int] = library().vramkit_gatherer_submit
        self._copy_to_device: Callable[..., int] = library().vramkit_copy_to_device
        destroy = library().vramkit_gather_plan_destroy
        weakref.finalize(self, destroy, self._handle).atexit = False

    def submit(
        self, gatherer: Gatherer, destinations: Sequence[int], indices_address: int, count: int
    ) -> int:
        """Copy row ``indices[k]`` of each piece to ``destination + k * row_bytes``.

        Args:
            gatherer: Whose threads do it.
            destinations: Addresses, one a piece, for ``count`` rows each; borrowed until the job is
                over. They must not overlap with the rows or each other.
            indices_address: Of an int64 array, which is copied before this returns.
            count: Entries of it.

        Returns:
            A ticket, to be waited for once; 0 if the job is already over.

        Raises:
            InvalidArgumentError: An index is out of range, in which case nothing was copied, or
                another argument is.
            PoolClosedError: The gatherer is closed.
            ForkedPoolError: It belongs to a parent of this process.
        """
        ticket = ctypes.c_uint64()
        targets = (ctypes.c_uint64 * len(destinations))(*map(_DESTINATION.check, destinations))
        # Faster than `call`, which looks everything up by name: this runs once a batch.
        status = self._submit(
            gatherer.handle,
            self._handle,
            targets,
            len(destinations),
            _INDICES.check(indices_address),
            _COUNT.check(count),
            ctypes.byref(ticket),
        )
        if status:
            raise_status(s.Status(status))
        return ticket.value

    def copy_to_device(
        self,
        destinations: Sequence[int],
        indices_address: int,
        count: int,
        device: int,
        stream: int,
    ) -> None:
        """Queue copies of row ``indices[k]`` of each piece to ``destination + k * row_bytes``.

        The device's copy engines read the rows where they lie. The rows of each segment must lie in
        one range of memory that :func:`host_register` registered, which is not checked. They and
        the destinations are borrowed until the stream is done.

        Args:
            destinations: Addresses in memory of the device, one a piece, for ``count`` rows each.
                They must not overlap.
            indices_address: Of an int64 array, which is copied before this returns.
            count: Entries of it.
            device: Ordinal of the CUDA device.
            stream: Handle of a stream of that device, other than the default stream; no graph may
                be captured on it.

        Raises:
            InvalidArgumentError: An index is out of range or another argument is wrong; nothing was
                queued.
            SystemCallError: The driver is missing, has no batched copies or refuses. If it refuses,
                some copies may be queued.
        """
        targets = (ctypes.c_uint64 * len(destinations))(*map(_DESTINATION.check, destinations))
        # As in `submit`.
        status = self._copy_to_device(
            self._handle,
            targets,
            len(destinations),
            _INDICES.check(indices_address),
            _COUNT.check(count),
            _DEVICE.check(device),
            _STREAM.check(stream),
        )
        if status:
            raise_status(s.Status(status))


def has_batched_copies() -> bool:
    """Whether there is a CUDA driver for :meth:`Plan.copy_to_device`: of CUDA 12.8 or later.

    It opens the driver. Without one the answer is False.
    """
    return bool(invoke("vramkit_has_batched_copies"))


def stream_copy(to: int, from_: int, size_bytes: int) -> None:
    """Copy memory past the CPU's caches, where that is faster; without the GIL.

    Args:
        to: Address of the destination, of any alignment.
        from_: Address of the source, of any alignment; the two must not overlap.
        size_bytes: How much.

    Raises:
        InvalidArgumentError: An address is null, or an integer is out of range.
    """
    # Runs once a sample: the checks of `call` would take longer than the copy of a small one.
    if not (0 <= to <= _HIGHEST and 0 <= from_ <= _HIGHEST and 0 <= size_bytes <= _HIGHEST):
        raise InvalidArgumentError(
            f"addresses and sizes must be between 0 and {_HIGHEST:,}, got to={to:,}, "
            f"from_={from_:,}, size_bytes={size_bytes:,}"
        )
    status = _stream_copy()(to, from_, size_bytes)
    if status:
        raise_status(s.Status(status))


def host_register(address: int, size_bytes: int, device: int, *, read_only: bool = False) -> None:
    """Lock host memory and make it known to the CUDA driver, for copies at full speed.

    It takes up to half a second for each GiB, and kernel launches of other threads wait meanwhile.
    The memory must stay mapped until :func:`host_unregister`.

    Args:
        address: Where it begins.
        size_bytes: How much.
        device: Ordinal of the CUDA device whose primary context knows it; all devices may use it.
        read_only: Devices copy from it only. Memory that this process may not write needs it.

    Raises:
        SystemCallError: There is no driver, or it refuses; the text has the limit on locked memory.
        InvalidArgumentError: The range is empty or registered already, or there is no such device.
        ForkedPoolError: A parent of this process has registered memory.
    """
    call("vramkit_host_register", address, size_bytes, device, int(read_only))


def host_unregister(address: int) -> None:
    """Undo :func:`host_register`; no copy from or to the memory may be under way.

    Raises:
        InvalidArgumentError: No memory is registered at that address.
        SystemCallError: The driver refuses.
        ForkedPoolError: A parent of this process has registered memory.
    """
    call("vramkit_host_unregister", address)


@atexit.register
def _close_all() -> None:
    """No thread may copy from arrays that the end of the interpreter frees."""
    for gatherer in list(_gatherers):
        with contextlib.suppress(ForkedPoolError):
            gatherer.close()


@functools.cache
def _stream_copy() -> Any:
    return library().vramkit_stream_copy


def _to_c(piece: Piece) -> s.Piece:
    parts = [(segment.address, segment.first_row, segment.rows) for segment in piece.segments]
    segments = s.Segment * len(parts)
    try:
        # All at once: a column may have tens of thousands, and each would take 20 µs.
        held = segments.from_buffer(array.array("Q", itertools.chain.from_iterable(parts)))
    except (OverflowError, TypeError):
        # One of the numbers does not fit, and the structure's error says which.
        held = segments(*itertools.starmap(s.Segment, parts))
    return s.Piece(held, len(parts), piece.row_bytes, piece.row_stride_bytes)


def _nanoseconds(timeout_s: float | None) -> int:
    if timeout_s is None:
        return _NO_TIMEOUT
    if math.isnan(timeout_s):
        raise InvalidArgumentError("timeout_s must be a number of seconds or None, got nan")
    return round(min(max(timeout_s, 0.0), 2.0**32) * 1e9)
