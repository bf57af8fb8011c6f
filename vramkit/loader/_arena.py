"""Staging memory: slots of one memory file that the parent and its workers map."""

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

from vramkit.errors import SystemCallError
from vramkit.loader import _memory_map
from vramkit.loader._pinning import Pinning

# Distance of two slots in the file. The file is sparse: a slot takes memory only for its capacity.
SLOT_STRIDE = 1 << 40
_GRANULE = 1 << 16


def slot_offset(index: int) -> int:
    """Where the slot begins in the file."""
    return index * SLOT_STRIDE


def round_capacity(needed_bytes: int) -> int:
    """The capacity that a slot gets for a batch: an eighth more, so that it seldom grows again."""
    wanted = needed_bytes + needed_bytes // 8
    return -(-wanted // _GRANULE) * _GRANULE


class Slot:
    """One place for one batch, as this process sees it."""

    __slots__ = ("address", "capacity", "delivered", "index", "not_before", "pinned", "worker")

    def __init__(self, index: int) -> None:
        self.index = index
        self.address = 0
        self.capacity = 0
        self.pinned = False
        # The worker that has the slot mapped already.
        self.worker = -1
        # Whether tensors of the user lie there, and the moment until which forked children copy it.
        self.delivered = False
        self.not_before = 0.0


class Lease:
    """The right to a slot; it ends with the last reference, in any thread.

    Tensors over the slot hold the lease, so the slot is used again only after they are gone.
    """

    __slots__ = ("_arena", "slot")

    def __init__(self, arena: "Arena", slot: Slot) -> None:
        self._arena = arena
        self.slot = slot

    def __del__(self) -> None:
        self._arena.take_back(self.slot)


class Arena:
    """The slots of one loader.

    Threads may lease, grow and give back side by side. The process that made the arena owns it: in
    a forked child nothing is given back.

    Args:
        budget_bytes: The memory that all slots together may take.
        pinning: Pins the memory of each slot, where it is to be copied to a GPU.

    Raises:
        SystemCallError: The system makes no memory file.
    """

    def __init__(self, budget_bytes: int, pinning: Pinning | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.fd = os.memfd_create("vramkit-loader", os.MFD_CLOEXEC)
        self._pinning = pinning
        self.process = os.getpid()
        self._slots: list[Slot] = []
        self._free: deque[Slot] = deque()
        self._empty: list[Slot] = []
        self._closed = False
        self._expected, self._needed_bytes = 0, 0
        self._filling: Callable[[], list[Slot]] = list
        _arenas.add(self)
        # Leases end without it, in destructors: what they touch is atomic under the GIL.
        self._lock = threading.Lock()

    @property
    def capacity_bytes(self) -> int:
        """The memory of all slots."""
        return sum(slot.capacity for slot in self._slots)

    @property
    def pinned_bytes(self) -> int:
        """The memory of all slots that is pinned."""
        return sum(slot.capacity for slot in self._slots if slot.pinned)

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._slots)

    def lease(self, worker: int = -1) -> Lease:
        """Take a free slot, one that the worker has mapped if there is one, or make another."""
        with self._lock:
            slot = self._take(worker)
            if slot is None and self._empty:
                slot = self._empty.pop()
            if slot is None:
                slot = Slot(len(self._slots))
                self._slots.append(slot)
        slot.worker = worker
        return Lease(self, slot)

    def _take(self, worker: int) -> Slot | None:
        free = self._reusable()
        own = [slot for slot in free if slot.worker == worker]
        for slot in own or free:
            self._free.remove(slot)
            return slot
        return None

    def _reusable(self) -> list[Slot]:
        now = time.monotonic()
        return [slot for slot in list(self._free) if slot.not_before <= now]

    def grow(self, slot: Slot, needed_bytes: int) -> None:
        """Give a leased slot memory for so many bytes, and map it.

        Raises:
            SystemCallError: There is no memory for it.
        """
        if slot.capacity >= needed_bytes:
            return
        capacity = round_capacity(needed_bytes)
        offset = slot_offset(slot.index)
        # The last page alone: the file reaches as far as the slot then, whatever others extend.
        _memory_map.commit(self.fd, offset + capacity - _GRANULE, _GRANULE)
        address = _memory_map.map_file(self.fd, offset, capacity)
        try:
            _memory_map.populate(address, capacity)
        except SystemCallError:
            _memory_map.unmap(address, capacity)
            raise
        self._adopt(slot, address, capacity)

    def map(self, slot: Slot, capacity: int) -> None:
        """Map a slot to which a worker has given so much memory."""
        if slot.capacity >= capacity:
            return
        address = _memory_map.map_file(self.fd, slot_offset(slot.index), capacity)
        self._adopt(slot, address, capacity)

    def prepare(self, count: int, needed_bytes: int) -> None:
        """Make free slots of so many bytes before they are needed.

        Raises:
            SystemCallError: There is no memory for them.
        """
        leases = [self.lease() for _ in range(count)]
        for lease in leases:
            self.grow(lease.slot, needed_bytes)

    def expect(self, count: int, filling: Callable[[], list[Slot]] = list) -> None:
        """Note for :meth:`settle` how many slots there shall be.

        Args:
            count: Of all slots.
            filling: Tells which slots workers are about to fill.
        """
        self._expected, self._filling = count, filling

    def settle(self) -> None:
        """Make all expected slots as large as one batch needs, where memory is pinned.

        Called once the first batch has been handed over: it did not wait for this, and later
        batches need not, nor do kernels, whose launches wait while memory is pinned. If the budget
        does not allow it, slots get their memory when they are first used.
        """
        expected, self._expected = self._expected, 0
        if not expected or self._pinning is None:
            return
        needed = self._needed_bytes
        filling = [slot for slot in self._filling() if slot.capacity < needed]
        more = max(0, expected - self.slots)
        added = round_capacity(needed) * (len(filling) + more)
        if self.capacity_bytes + added > self.budget_bytes:
            return
        # Without memory now, each slot may get some when it is first used.
        with contextlib.suppress(SystemCallError):
            for slot in filling:
                # What a worker has written stays.
                self.grow(slot, needed)
            self.prepare(more, needed)

    def _adopt(self, slot: Slot, address: int, capacity: int) -> None:
        self._unmap(slot)
        slot.address, slot.capacity = address, capacity
        self._needed_bytes = max(self._needed_bytes, capacity)
        if self._pinning is not None:
            slot.pinned = self._pinning.pin(address, capacity)

    def take_back(self, slot: Slot) -> None:
        """End the lease of a slot; called by the lease."""
        if os.getpid() != self.process:
            return
        slot.delivered = False
        if self._closed:
            self._unmap(slot)
        else:
            self._free.append(slot)

    def trim(self, keep: int) -> None:
        """Give back the memory of free slots beyond the first ``keep``."""
        with self._lock:
            # A forked child may still be copying from the others.
            for slot in self._reusable()[keep:]:
                self._free.remove(slot)
                capacity = slot.capacity
                self._unmap(slot)
                if capacity:
                    _memory_map.discard(self.fd, slot_offset(slot.index), capacity)
                # The slot itself stays, empty: workers know it by its number.
                self._empty.append(slot)

    def close(self) -> None:
        """Give everything back; slots under lease follow when their lease ends."""
        if self._closed or os.getpid() != self.process:
            return
        self._closed = True
        while self._free:
            self._unmap(self._free.pop())
        os.close(self.fd)

    def _unmap(self, slot: Slot) -> None:
        if not slot.address:
            return
        if slot.pinned and self._pinning is not None:
            self._pinning.unpin(slot.address)
        _memory_map.unmap(slot.address, slot.capacity)
        slot.address, slot.capacity, slot.pinned = 0, 0, False

    def forked_in_parent(self) -> None:
        """After a fork: use no slot again before the child has had time to copy it."""
        ready = time.monotonic() + _COPYING_S
        for slot in self._slots:
            if slot.delivered:
                slot.not_before = ready

    def forked_in_child(self) -> None:
        """After a fork: give this child a copy of the batches that its parent held."""
        for slot in self._slots:
            if slot.delivered and slot.address:
                _memory_map.make_private(slot.address, slot.capacity)
                slot.delivered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


# For so long after a fork, a slot that the parent gives up is not used again.
_COPYING_S = 2.0
_arenas: "weakref.WeakSet[Arena]" = weakref.WeakSet()
_starting_workers = threading.local()


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """The forks of this thread make workers of a loader, which do not look at batches."""
    _starting_workers.now = True
    try:
        yield
    finally:
        _starting_workers.now = False


def _after_in_parent() -> None:
    if not getattr(_starting_workers, "now", False):
        for arena in list(_arenas):
            arena.forked_in_parent()


def _after_in_child() -> None:
    if not getattr(_starting_workers, "now", False):
        for arena in list(_arenas):
            arena.forked_in_child()


os.register_at_fork(after_in_parent=_after_in_parent, after_in_child=_after_in_child)
