"""A worker's view of the slots: it writes samples and tensors straight into them."""

import ctypes
import os
from collections.abc import Callable
from typing import Any

import torch

from vramkit.errors import SystemCallError
from vramkit.loader import _memory_map
from vramkit.loader._packing import Shape, aligned, tensor_over
from vramkit.loader._slot_memory import round_capacity, slot_offset

StreamCopy = Callable[[int, int, int], object]


class SlotWriter:
    """Fills one slot at a time.

    Args:
        fd: The memory file.
        limit_bytes: The most memory that one slot may take.
        copy: How samples are copied.
        slots: How many slots share staging memory.
    """

    def __init__(self, fd: int, limit_bytes: int, copy: StreamCopy, slots: int = 1) -> None:
        self._fd = fd
        self._limit = limit_bytes
        self._slots = slots
        self.copy = copy
        self._windows: dict[int, tuple[int, int]] = {}
        self._slot = -1
        self._retired: list[tuple[int, int]] = []
        self.capacity = 0
        self.used_bytes = 0
        # Why a batch could not use the slot, for the parent to tell.
        self.refusal = ""

    def begin(self, slot: int, capacity: int) -> None:
        """Turn to a slot that has so much memory now; its contents may be overwritten."""
        for address, size in self._retired:
            _memory_map.unmap(address, size)
        self._retired.clear()
        self._slot, self.capacity, self.used_bytes, self.refusal = slot, capacity, 0, ""

    @property
    def current(self) -> tuple[int, int]:
        """The slot that is being filled, or -1, and its capacity."""
        return self._slot, self.capacity

    def end(self) -> None:
        """The slot is the parent's again."""
        self._slot, self.capacity, self.used_bytes, self.refusal = -1, 0, 0, ""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes that the parent has put into the slot."""
        return ctypes.string_at(self._window() + offset, size_bytes)

    def write(self, content: bytes) -> int | None:
        """Put bytes into the slot for the parent; returns where, or None if there is no room."""
        offset = self.reserve(len(content))
        if offset is not None:
            ctypes.memmove(self._window() + offset, content, len(content))
        return offset

    def reserve(self, size_bytes: int) -> int | None:
        """Take the next bytes of the slot; returns their offset, or None if there is no room."""
        if self._slot < 0:
            return None
        offset = aligned(self.used_bytes)
        if offset + size_bytes > self.capacity and not self._grow(offset + size_bytes):
            return None
        self.used_bytes = offset + size_bytes
        return offset

    def extend_to(self, used_bytes: int) -> bool:
        """Take the slot up to there; returns whether there is room."""
        if self._slot < 0 or (used_bytes > self.capacity and not self._grow(used_bytes)):
            return False
        self.used_bytes = max(self.used_bytes, used_bytes)
        return True

    def address(self, offset: int) -> int:
        """Where in this process an offset of the slot lies."""
        return self._window() + offset

    def tensor(self, offset: int, dtype: torch.dtype, shape: Shape) -> torch.Tensor:
        """A contiguous tensor at an offset; valid until the next :meth:`begin`."""
        address = self._window()
        size = self._windows[self._slot][1]
        buffer: Any = (ctypes.c_char * size).from_address(address)
        return tensor_over(buffer, offset, dtype, shape)

    def offset_of(self, address: int, size_bytes: int) -> int | None:
        """Where in the slot these bytes lie already, or None."""
        current = self._windows.get(self._slot)
        if current is not None and current[0] <= address < current[0] + current[1]:
            return address - current[0]
        for base, size in self._retired:
            if base <= address and address + size_bytes <= base + size:
                return address - base
        return None

    def store(self, address: int, size_bytes: int) -> int | None:
        """Copy bytes into the slot; returns where they lie, or None if there is no room."""
        offset = self.reserve(size_bytes)
        if offset is not None and size_bytes:
            self.copy(self._window() + offset, address, size_bytes)
        return offset

    def _window(self) -> int:
        current = self._windows.get(self._slot)
        if current is None or current[1] < self.capacity:
            self._map(self.capacity)
            current = self._windows[self._slot]
        return current[0]

    def _map(self, capacity: int) -> None:
        address = _memory_map.map_file(self._fd, slot_offset(self._slot), capacity)
        before = self._windows.get(self._slot)
        if before is not None:
            # Tensors of this batch may lie there; both mappings show the same memory.
            self._retired.append(before)
        self._windows[self._slot] = (address, capacity)

    def _grow(self, needed_bytes: int) -> bool:
        if needed_bytes > self._limit:
            self.refusal = (
                f"a batch needs {needed_bytes:,} bytes, more than the {self._limit:,} bytes that "
                f"each of {self._slots} slots has; with staging_bytes={needed_bytes * self._slots} "
                "or more it has room"
            )
            return False
        capacity = min(round_capacity(needed_bytes), max(self._limit, needed_bytes))
        try:
            _memory_map.commit(self._fd, slot_offset(self._slot), capacity)
            self._map(capacity)
        except SystemCallError as err:
            self.refusal = str(err)
            return False
        self.capacity = capacity
        return True

    def close(self) -> None:
        """End all mappings."""
        for address, size in [*self._windows.values(), *self._retired]:
            _memory_map.unmap(address, size)
        self._windows.clear()
        self._retired.clear()
        os.close(self._fd)
