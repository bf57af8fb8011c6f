"""Rows that the GPU copies straight from the dataset's own memory, registered with CUDA.

The copy engines read large rows at the rate of the link, and no core of the host is used. The
memory is registered when an epoch begins, within the loader's bound, and given back when the loader
is closed. It is the whole storage of an array, never a part: the driver refuses a copy from memory
of which only a part is registered, and the user may make such copies at any time.
"""

import contextlib
import itertools
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vramkit._core import Plan, has_batched_copies, host_register, host_unregister
from vramkit.errors import VramkitError
from vramkit.loader._address_space import Mapping, is_resident, mapping_of, mappings
from vramkit.loader._columns import Column, Segment
from vramkit.loader._extents import Extent, extent_of

# Each row costs the driver some 1.5 µs. Smaller ones are gathered by host threads sooner.
ROW_FROM_BYTES = 32 << 10
# The C library gives larger blocks pages of their own; smaller ones may share pages with others.
OWN_PAGES_FROM_BYTES = 64 << 20
_PAGE = os.sysconf("SC_PAGESIZE")


class NotRegisteredError(Exception):
    """The memory cannot be registered; the text says why."""


@dataclass(frozen=True, slots=True)
class Range:
    """Whole pages of this process.

    Attributes:
        begin: The first address.
        end: The address after the last.
        read_only: This process may not write there.
        private: A forked child gets a copy.
    """

    begin: int
    end: int
    read_only: bool
    private: bool

    @property
    def writable_file(self) -> bool:
        """Whether a file lies there and may be written, which few systems let drivers hold."""
        return not self.read_only and not self.private


class _Registry:
    """What the loaders of this process have registered, and how often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[Range, int] = {}

    def holds(self, address: int) -> bool:
        """Whether the address was registered here, rather than by the user."""
        return any(each.begin <= address < each.end for each in list(self._uses))

    def add(self, wanted: Range, device: int) -> None:
        with self._lock:
            # First noted, then done: nothing stays registered after an interrupt.
            self._uses[wanted] = self._uses.get(wanted, 0) + 1
            if self._uses[wanted] > 1:
                return
            try:
                size = wanted.end - wanted.begin
                host_register(wanted.begin, size, device, read_only=wanted.read_only)
            except VramkitError:
                del self._uses[wanted]
                raise

    def remove(self, held: Range) -> None:
        with self._lock:
            uses = self._uses.pop(held, 0)
            if uses > 1:
                self._uses[held] = uses - 1
            elif uses:
                host_unregister(held.begin)


_registry = _Registry()
_all_rows: "weakref.WeakSet[RegisteredRows]" = weakref.WeakSet()


class RegisteredRows:
    """The columns of a dataset whose rows the GPU copies itself.

    Args:
        columns: All columns of the dataset.
        device: Ordinal of the CUDA device.
        bound_bytes: The most memory that may be registered.
    """

    def __init__(self, columns: list[Column], device: int, bound_bytes: int) -> None:
        self.positions = [at for at, column in enumerate(columns) if _is_large(column)]
        self._segments = _large_segments(columns)
        self.device = device
        self._bound_bytes = bound_bytes
        # Why the rows are gathered by host threads now; empty if they are not.
        self.reason = "no epoch has begun"
        self._held: list[Range] = []
        self._last: torch.cuda.Event | None = None
        self._broken = ""
        self._process = os.getpid()
        # Held while copies are queued, so that nothing is unregistered in between.
        self._lock = threading.RLock()
        _all_rows.add(self)

    def is_of(self, columns: list[Column]) -> bool:
        """Whether these rows are those of the columns."""
        return [(s.address, s.rows) for s in _large_segments(columns)] == [
            (s.address, s.rows) for s in self._segments
        ]

    @property
    def size_bytes(self) -> int:
        """How much is registered for these rows now."""
        return sum(each.end - each.begin for each in self._held)

    def begin(self) -> None:
        """Register the memory, unless that is done; afterwards ``reason`` says why it is not."""
        with self._lock:
            if not self.reason:
                return
            try:
                self._register()
            except (NotRegisteredError, VramkitError) as err:
                self._give_back()
                self.reason = str(err)

    def _register(self) -> None:
        if self._broken:
            raise NotRegisteredError(self._broken)
        if not self.positions:
            raise NotRegisteredError(
                f"rows of less than {ROW_FROM_BYTES >> 10} KiB are gathered by host threads sooner"
            )
        if not has_batched_copies():
            raise NotRegisteredError("the CUDA driver has no batched copies (CUDA 12.8 or later)")
        ranges = ranges_of(self._segments)
        total = sum(each.end - each.begin for each in ranges)
        if total > self._bound_bytes:
            raise NotRegisteredError(
                f"the arrays take {total:,} bytes, more than staging_bytes, "
                f"{self._bound_bytes:,} bytes"
            )
        for each in ranges:
            self._held.append(each)
            try:
                _registry.add(each, self.device)
            except VramkitError as err:
                self._held.pop()
                hint = (
                    "; map files for reading only (numpy: mode 'r')" if each.writable_file else ""
                )
                raise NotRegisteredError(f"{err}{hint}") from err
        self.reason = ""

    def copy(self, parts: "list[Part]", memory: int, stream: torch.cuda.Stream) -> bool:
        """Queue copies of rows to device memory; returns whether the rows are registered still."""
        with self._lock:
            if self.reason:
                return False
            try:
                for part in parts:
                    part.plan.copy_to_device(
                        [memory + offset for offset in part.offsets],
                        part.rows.data_ptr(),
                        len(part.rows),
                        self.device,
                        stream.cuda_stream,
                    )
            except VramkitError as err:
                self._broken = str(err)
                warnings.warn(
                    f"rows of the dataset go through host threads from now on: {err}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                stream.synchronize()
                self.release("the driver refused to copy from the dataset's memory: " + str(err))
                return False
            finally:
                self._last = torch.cuda.Event()
                self._last.record(stream)
            return True

    def release(self, why: str) -> None:
        """Wait for the copies that are queued and unregister the memory."""
        with self._lock:
            if not self.reason:
                self.reason = why
            if self._held and self._last is not None:
                self._last.synchronize()
            self._give_back()

    def _give_back(self) -> None:
        while self._held:
            # The memory may be gone with the driver, at the end of the process.
            with contextlib.suppress(VramkitError):
                _registry.remove(self._held.pop())

    def before_fork(self) -> None:
        """Registered private memory would be copied for the child at once: give it back."""
        ours = self._process == os.getpid()
        if ours and any(each.private for each in list(self._held)):
            self.release("a process was forked; the next epoch registers the memory again")


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of some columns, by one index list.

    Attributes:
        plan: The columns.
        offsets: Where in the batch's memory the rows of each begin.
        rows: The indices, int64.
    """

    plan: Plan
    offsets: list[int]
    rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class RowCopies:
    """The rows of a batch that the GPU copies itself.

    Attributes:
        source: Whose rows they are.
        parts: Which.
        end: Where in the batch's memory they end.
        instead: Gathers the batch by host threads.
    """

    source: RegisteredRows
    parts: list[Part]
    end: int
    instead: Callable[[], Any]


def _is_large(column: Column) -> bool:
    return column.row_bytes >= ROW_FROM_BYTES


def _large_segments(columns: list[Column]) -> list[Segment]:
    return [segment for column in columns if _is_large(column) for segment in column.segments]


def ranges_of(segments: list[Segment]) -> list[Range]:
    """Return the pages to register so that all segments lie in them.

    Raises:
        NotRegisteredError: Some of the memory may not be registered.
    """
    found: set[Range] = set()
    mapped: list[Mapping] = []
    for segment in segments:
        if not segment.rows:
            continue
        extent = extent_of(segment)
        if _is_pinned(segment.owner) and not _registry.holds(extent.begin):
            continue
        mapped = mapped or mappings()
        mapping = mapping_of(extent.begin, extent.end, mapped)
        if mapping is None:
            raise NotRegisteredError("an array lies in mappings of several kinds")
        found.add(_range_in(mapping, extent))
    ordered = sorted(found, key=lambda each: each.begin)
    for before, after in itertools.pairwise(ordered):
        if before.end > after.begin:
            raise NotRegisteredError("two arrays share pages of memory")
    return ordered


def _range_in(mapping: Mapping, extent: Extent) -> Range:
    begin, end = extent.begin, extent.end
    if not mapping.of_file:
        if mapping.path == "[heap]":
            raise NotRegisteredError(
                "an array lies in the heap of the C library, where it may share pages with other "
                "memory"
            )
        if end - begin < OWN_PAGES_FROM_BYTES:
            raise NotRegisteredError(
                f"an array of {end - begin:,} bytes may share pages with other memory; only those "
                f"from {OWN_PAGES_FROM_BYTES:,} bytes on are registered"
            )
        begin, end = begin // _PAGE * _PAGE, -(-end // _PAGE) * _PAGE
        # What fills a mapping of its own is no part of anything.
        if not extent.is_whole and (begin, end) != (mapping.begin, mapping.end):
            raise NotRegisteredError(
                "an array may be a part of something larger, of which nothing is known (a tensor "
                "made from a slice of a numpy array, for example); clone() or copy() makes it whole"
            )
        return Range(begin, end, not mapping.writable, private=True)
    if mapping.private:
        raise NotRegisteredError(
            f"{mapping.path} is mapped privately, so registering would copy it; map it shared "
            '(numpy: mode "r" or "r+")'
        )
    if not is_resident(mapping.begin, mapping.end):
        raise NotRegisteredError(
            f"{mapping.path} is not in memory as a whole yet; the next epoch tries again"
        )
    return Range(mapping.begin, mapping.end, not mapping.writable, private=False)


def _is_pinned(owner: object) -> bool:
    return isinstance(owner, torch.Tensor) and owner.is_pinned()


def _before_fork() -> None:
    for rows in list(_all_rows):
        rows.before_fork()


os.register_at_fork(before=_before_fork)
