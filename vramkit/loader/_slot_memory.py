"""Where the memory of slots comes from."""

import os
from typing import Protocol

from vramkit.errors import SystemCallError
from vramkit.loader import _memory_map

# Distance of two slots in the file. The file is sparse: a slot takes memory only for its capacity.
SLOT_STRIDE = 1 << 40
_GRANULE = 1 << 16
_HUGE_PAGE = 1 << 21


def slot_offset(index: int) -> int:
    """Where the slot begins in the file."""
    return index * SLOT_STRIDE


def round_capacity(needed_bytes: int) -> int:
    """The capacity that a slot gets for a batch: an eighth more, so that it seldom grows again."""
    wanted = needed_bytes + needed_bytes // 8
    return -(-wanted // _GRANULE) * _GRANULE


def _populated(address: int, capacity: int) -> int:
    """Give a mapping its memory now, and end it if there is none."""
    try:
        _memory_map.populate(address, capacity)
    except SystemCallError:
        _memory_map.unmap(address, capacity)
        raise
    return address


class SlotMemory(Protocol):
    """Gives slots their memory."""

    def make(self, index: int, capacity: int) -> int:
        """Return the address of memory for a slot; what was in the slot before may be lost.

        Raises:
            SystemCallError: There is no memory.
        """

    def discard(self, index: int, capacity: int) -> None:
        """Give the memory of a slot back that is mapped no longer."""

    def close(self) -> None:
        """Give everything back that is mapped no longer."""


class SharedMemory:
    """A memory file, which workers map too.

    Raises:
        SystemCallError: The system makes no memory file.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("vramkit-loader", os.MFD_CLOEXEC)

    def make(self, index: int, capacity: int) -> int:
        """Return the address of memory for a slot."""
        # The last page alone: the file reaches as far as the slot then, whatever others extend.
        _memory_map.commit(self.fd, slot_offset(index) + capacity - _GRANULE, _GRANULE)
        return _populated(self.map(index, capacity), capacity)

    def map(self, index: int, capacity: int) -> int:
        """Return the address of memory that a worker has made."""
        return _memory_map.map_file(self.fd, slot_offset(index), capacity)

    def discard(self, index: int, capacity: int) -> None:
        """Give the memory of a slot back."""
        _memory_map.discard(self.fd, slot_offset(index), capacity)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class OwnMemory:
    """Memory of this process alone, for batches that it makes and a GPU copies at once.

    It has huge pages, to which host threads gather faster than to a memory file. Forked children do
    not have it: they need none of it, and what is registered would be copied for them at once.
    """

    def make(self, index: int, capacity: int) -> int:  # noqa: ARG002 - as in the protocol
        """Return the address of memory for a slot; what lay in it before is lost."""
        return _populated(_memory_map.map_own(capacity, _HUGE_PAGE), capacity)

    def discard(self, index: int, capacity: int) -> None:
        """Do nothing: unmapped memory is gone."""

    def close(self) -> None:
        """Do nothing."""
