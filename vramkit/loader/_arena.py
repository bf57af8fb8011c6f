"""Staging memory: slots of one memory file that the parent and its workers map."""

import contextlib
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

from vramkit.errors import SystemCallError
from vramkit.loader import _memory_map
from vramkit.loader._pinning import Pinning
from vramkit.loader._slot_memory import SharedMemory, SlotMemory, round_capacity


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

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the process the system takes everything back, and modules may be gone.
        if not is_ending():
            self._arena.take_back(self.slot)


class Arena:
    """The slots of one loader.

    Threads may lease, grow and give back side by side. The process that made the arena owns it: in
    a forked child nothing is given back.

    Args:
        budget_bytes: The memory that all slots together may take.
        pinning: Pins the memory of each slot, where it is to be copied to a GPU.
        memory: Where the memory comes from; shared with workers unless told otherwise.

    Raises:
        SystemCallError: The system makes no memory file.
    """

    def __init__(
        self,
        budget_bytes: int,
        pinning: Pinning | None = None,
        memory: SlotMemory | None = None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._memory = SharedMemory() if memory is None else memory
        self._pinning = pinning
        self.process = os.getpid()
        self._slots: list[Slot] = []
        self._free: deque[Slot] = deque()
        self._empty: list[Slot] = []
        self._closed = False
        self._expected = 0
        _arenas.add(self)
        # Leases end without it, in destructors: what they touch is atomic under the GIL.
        self._lock = threading.Lock()

    @property
    def fd(self) -> int:
        """The memory file."""
        assert isinstance(self._memory, SharedMemory)
        return self._memory.fd

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
        if slot.capacity < needed_bytes:
            self._give(slot, round_capacity(needed_bytes))

    def _give(self, slot: Slot, capacity: int) -> None:
        if slot.capacity < capacity:
            self._adopt(slot, self._memory.make(slot.index, capacity), capacity)

    def map(self, slot: Slot, capacity: int) -> None:
        """Map a slot to which a worker has given so much memory."""
        if slot.capacity < capacity:
            assert isinstance(self._memory, SharedMemory)
            self._adopt(slot, self._memory.map(slot.index, capacity), capacity)

    def prepare(self, count: int, needed_bytes: int) -> None:
        """Have so many slots in all, and give all free ones memory for so many bytes.

        Raises:
            SystemCallError: There is no memory for them.
        """
        self._prepare(count, round_capacity(needed_bytes))

    def _prepare(self, count: int, capacity: int) -> None:
        more = max(0, count - len(self._slots) + len(self._empty))
        leases = [self.lease() for _ in range(len(self._reusable()) + more)]
        for lease in leases:
            self._give(lease.slot, capacity)

    def expect(self, count: int) -> None:
        """Note for :meth:`settle` how many slots there shall be."""
        self._expected = count

    def settle(self) -> None:
        """Make the slots that are expected, as large as the largest, if memory is pinned.

        Called once the first batch has been handed over, which did not wait for this. If the budget
        does not allow it, slots get their memory when they are first used.
        """
        expected, self._expected = self._expected, 0
        capacity = max((slot.capacity for slot in self._slots), default=0)
        added = max(0, expected - self.slots) * capacity
        if self._pinning is None or self.capacity_bytes + added > self.budget_bytes:
            return
        # Without memory now, each slot may get some when it is first used.
        with contextlib.suppress(SystemCallError):
            self._prepare(expected, capacity)

    def _adopt(self, slot: Slot, address: int, capacity: int) -> None:
        self._unmap(slot)
        slot.address, slot.capacity = address, capacity
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
                    self._memory.discard(slot.index, capacity)
                # The slot itself stays, empty: workers know it by its number.
                self._empty.append(slot)

    def close(self) -> None:
        """Give everything back; slots under lease follow when their lease ends."""
        if self._closed or os.getpid() != self.process:
            return
        self._closed = True
        while self._free:
            self._unmap(self._free.pop())
        self._memory.close()

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
