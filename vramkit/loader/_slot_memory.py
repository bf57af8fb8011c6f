"""Where the memory of slots comes from."""

import errno
import os
import resource
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
    except BaseException:
        # An interrupt, too.
        _memory_map.unmap(address, capacity)
        raise
    return address


class SlotMemory(Protocol):
    """Gives slots their memory.

    Attributes:
        is_shared: Whether forked processes see what this one writes later.
    """

    is_shared: bool

    def make(self, index: int, capacity: int) -> int:
        """Return the address of memory for a slot; what was in the slot before may be lost.

        Raises:
            SystemCallError: There is no memory.
        """

    def map_copy_on_write(self, index: int, address: int, capacity: int) -> None:
        """In a forked process: what it writes to shared memory from now on stays there."""

    def discard(self, index: int, capacity: int) -> None:
        """Give the memory of a slot back that is mapped no longer."""

    def close(self) -> None:
        """Give everything back that is mapped no longer."""


class SharedMemory:
    """A memory file, which workers map too.

    Raises:
        SystemCallError: The system makes no memory file, or limits the size of files.
    """

    is_shared = True

    def __init__(self) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY:
            raise SystemCallError(
                errno.EFBIG,
                f"files may not exceed {limit:,} bytes in this process, but staging memory is a "
                "sparse file whose slots lie far apart; lift the limit (ulimit -f unlimited)",
            )
        self.fd = os.memfd_create("vramkit-loader", os.MFD_CLOEXEC)

    def make(self, index: int, capacity: int) -> int:
        """Return the address of memory for a slot."""
        # The last page alone: the file reaches as far as the slot then, whatever others extend.
        _memory_map.commit(self.fd, slot_offset(index) + capacity - _GRANULE, _GRANULE)
        return _populated(self.map(index, capacity), capacity)

    def map(self, index: int, capacity: int) -> int:
        """Return the address of memory that a worker has made."""
        return _memory_map.map_file(self.fd, slot_offset(index), capacity)

    def map_copy_on_write(self, index: int, address: int, capacity: int) -> None:
        """Map a slot anew at the same address, so that what is written there stays here."""
        _memory_map.map_file_privately(self.fd, slot_offset(index), address, capacity)

    def discard(self, index: int, capacity: int) -> None:
        """Give the memory of a slot back."""
        _memory_map.discard(self.fd, slot_offset(index), capacity)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class OwnMemory:
    """Memory of this process alone, for batches that it makes itself.

    It has huge pages, to which host threads gather faster than to a memory file.

    Args:
        inherited: Forked children have a copy, made when one side writes. Without it they do not
            have the memory: what is registered with CUDA would be copied for them at once.
    """

    is_shared = False

    def __init__(self, *, inherited: bool) -> None:
        self._inherited = inherited

    def make(self, index: int, capacity: int) -> int:  # noqa: ARG002 - as in the protocol
        """Return the address of memory for a slot; what lay in it before is lost."""
        address = _memory_map.map_own(capacity, _HUGE_PAGE, inherited=self._inherited)
        return _populated(address, capacity)

    def map_copy_on_write(self, index: int, address: int, capacity: int) -> None:
        """Do nothing: it is."""

    def discard(self, index: int, capacity: int) -> None:
        """Do nothing: unmapped memory is gone."""

    def close(self) -> None:
        """Do nothing."""
