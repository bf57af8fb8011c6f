"""Staging memory: slots of one memory file that the parent and its workers map."""

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Self

from vramkit.errors import SystemCallError
from vramkit.loader import _forks, _memory_map
from vramkit.loader._forks import Reader
from vramkit.loader._pinning import Pinning
from vramkit.loader._slot_memory import SharedMemory, SlotMemory, round_capacity


class Slot:
    """One place for one batch, as this process sees it."""

    __slots__ = ("address", "capacity", "delivered", "index", "pinned", "readers", "worker")

    def __init__(self, index: int) -> None:
        self.index = index
        self.address = 0
        self.capacity = 0
        self.pinned = False
        # The worker that has the slot mapped already.
        self.worker = -1
        # Whether tensors of the user lie there, and the forked processes that may read them.
        self.delivered = False
        self.readers: list[Reader] = []


class Lease:
    """The right to a slot; it ends with the last reference, in any thread.

    Tensors over the slot hold the lease, so the slot is used again only after they are gone.
    """

    __slots__ = ("_arena", "slot")

    def __init__(self, arena: "Arena", slot: Slot) -> None:
        self._arena = arena
        self.slot = slot

    @property
    def is_beyond_budget(self) -> bool:
        """Whether all slots together take more than they may."""
        return self._arena.is_beyond_budget

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
        self._capacity_bytes = 0
        # Those of forks that are under way.
        self._coming_readers: list[Reader] = []
        if self._memory.is_shared:
            _forks.watch(self)
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
        return self._capacity_bytes

    @property
    def is_beyond_budget(self) -> bool:
        """Whether the slots take more than they may, since batches were kept."""
        return self._capacity_bytes > self.budget_bytes

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
        return self._lease(worker, lambda slot: slot.worker == worker)

    def _lease(self, worker: int, is_preferred: Callable[[Slot], bool]) -> Lease:
        with self._lock:
            slot = self._take(is_preferred)
            # Not what is pinned: to pin it again would stop the GPU.
            if self._pinning is None and self.is_beyond_budget:
                self._discard(self._reusable())
            if slot is None and self._empty:
                slot = self._empty.pop()
            if slot is None:
                slot = Slot(len(self._slots))
                self._slots.append(slot)
        slot.worker = worker
        return Lease(self, slot)

    def lease_within(self, needed_bytes: int) -> Lease | None:
        """Lease a slot of so many bytes; returns None if the budget has no room for it.

        Raises:
            SystemCallError: There is no memory for it.
        """
        lease = self._lease(-1, lambda slot: slot.capacity >= needed_bytes)
        more = max(0, round_capacity(needed_bytes) - lease.slot.capacity)
        if lease.slot.capacity < needed_bytes and self._capacity_bytes + more > self.budget_bytes:
            return None
        self.grow(lease.slot, needed_bytes)
        return lease

    def _take(self, is_preferred: Callable[[Slot], bool]) -> Slot | None:
        free = self._reusable()
        for slot in [slot for slot in free if is_preferred(slot)] or free:
            self._free.remove(slot)
            return slot
        return None

    def _reusable(self) -> list[Slot]:
        return [slot for slot in list(self._free) if not slot.readers or _is_unread(slot)]

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
        with self._lock:
            self._unmap(slot)
            slot.address, slot.capacity = address, capacity
            self._capacity_bytes += capacity
        if self._pinning is not None:
            slot.pinned = self._pinning.pin(address, capacity)

    def take_back(self, slot: Slot) -> None:
        """End the lease of a slot; called by the lease."""
        if os.getpid() != self.process:
            return
        slot.delivered = False
        slot.readers.extend(self._coming_readers)
        if self._closed:
            self._unmap(slot)
        else:
            self._free.append(slot)

    def trim(self, keep: int) -> None:
        """Give back the memory of free slots beyond the first ``keep``."""
        with self._lock:
            self._discard(self._reusable()[keep:])

    def _discard(self, slots: list[Slot]) -> None:
        """Give the memory of free slots back; the slots stay, known to workers by their number."""
        for slot in slots:
            self._free.remove(slot)
            capacity = slot.capacity
            self._unmap(slot)
            if capacity:
                self._memory.discard(slot.index, capacity)
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
        self._capacity_bytes -= slot.capacity
        slot.address, slot.capacity, slot.pinned = 0, 0, False

    def has_batches(self) -> bool:
        """Whether tensors of the user lie in a slot."""
        return os.getpid() == self.process and any(slot.delivered for slot in self._slots)

    def fork_begins(self, reader: Reader) -> None:
        """Before a fork: what is given back from now on is what the child may read."""
        self._coming_readers.append(reader)

    def forked_in_parent(self, reader: Reader) -> None:
        """After a fork: use no slot again that the child may read."""
        for slot in self._slots:
            if slot.delivered:
                slot.readers.append(reader)
        self._coming_readers.remove(reader)

    def forked_in_child(self) -> bool:
        """After a fork: give this child a copy of the batches that its parent held.

        Returns whether it needs the parent's slots no longer.
        """
        copied = True
        for slot in self._delivered_slots():
            try:
                _memory_map.make_private(slot.address, slot.capacity)
                slot.delivered = False
            except SystemCallError:
                # There is no memory for all of it now.
                copied = False
                self._map_copy_on_write(slot)
        return copied

    def forked_in_worker(self) -> None:
        """After a fork: what this worker writes to its parent's batches stays here."""
        for slot in self._delivered_slots():
            self._map_copy_on_write(slot)

    def _delivered_slots(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.delivered and slot.address]

    def _map_copy_on_write(self, slot: Slot) -> None:
        # The file of a closed arena is closed. Its slots are not used again, but are shared.
        if not self._closed:
            self._memory.map_copy_on_write(slot.index, slot.address, slot.capacity)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _is_unread(slot: Slot) -> bool:
    """Whether no forked process may read the slot any more."""
    # In place: more readers may come at any moment.
    for reader in list(slot.readers):
        if reader.ended():
            slot.readers.remove(reader)
    return not slot.readers
