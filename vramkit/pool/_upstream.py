"""Pools on memory that an RMM resource gave: taken once, given back when the pool has closed."""

import threading
import time
from typing import TYPE_CHECKING

from vramkit._core import CorePool, is_closed, owner
from vramkit.errors import ArgumentTypeError, CapacityError, InvalidArgumentError
from vramkit.pool._interop import rmm_module
from vramkit.units import format_mib

if TYPE_CHECKING:
    import rmm
    from rmm.mr import DeviceMemoryResource

# Nothing is mapped there. CUDA gives large memory at multiples of this, so no page is lost.
PAGE_BYTES = 2 << 20
_LOOK_EVERY_S = 0.1


def take(
    upstream: "DeviceMemoryResource", size_bytes: int, *, page_bytes: int, ordinal: int
) -> "tuple[rmm.DeviceBuffer, int, int]":
    """Take a pool's memory from the resource.

    Returns:
        The owner of the memory, the address of its first whole page, and the bytes from there on.

    Raises:
        ArgumentTypeError: ``upstream`` is no RMM resource.
        CapacityError: The resource does not have that much.
        InvalidArgumentError: The resource's memory is itself a vramkit pool's.
    """
    import torch

    rmm = rmm_module()
    if not isinstance(upstream, rmm.mr.DeviceMemoryResource):
        raise ArgumentTypeError(
            f"upstream must be an rmm.mr.DeviceMemoryResource, got {upstream!r} of type "
            f"{type(upstream).__name__}"
        )
    size_bytes -= size_bytes % page_bytes
    with torch.cuda.device(ordinal):
        try:
            buffer = rmm.DeviceBuffer(size=size_bytes, mr=upstream)
        except MemoryError as err:
            raise CapacityError(
                f"upstream: the resource cannot give {format_mib(size_bytes)} in one piece: {err}"
            ) from err
        # The memory is the resource's default stream's; the pool's streams know nothing of it.
        torch.cuda.synchronize()
    if owner(buffer.ptr) != 0:
        raise InvalidArgumentError(
            "upstream: the resource's memory lies in a vramkit pool already; a pool cannot stand "
            "on another one. Use that pool itself"
        )
    first = -(-buffer.ptr // page_bytes) * page_bytes
    return buffer, first, buffer.ptr + size_bytes - first


class _Kept:
    """The memory of all pools that stand on a resource's, until each has closed.

    Not the pool object but this owns it: an exception in the midst of a finalizer then leaves the
    memory here for a while, and never takes it from under a tensor.
    """

    def __init__(self) -> None:
        # Reentrant: the garbage collector may let go of a pool in the midst of what holds it.
        self._lock = threading.RLock()
        self._by_handle: dict[int, rmm.DeviceBuffer] = {}
        self._watched = False

    def add(self, handle: int, buffer: "rmm.DeviceBuffer") -> None:
        with self._lock:
            self._drop_closed()
            self._by_handle[handle] = buffer

    def give_back(self) -> None:
        with self._lock:
            self._drop_closed()

    def watch(self, handle: int) -> None:
        with self._lock:
            self._drop_closed()
            if handle not in self._by_handle or self._watched:
                return
            self._watched = True
        threading.Thread(target=self._watch, name="vramkit-upstream", daemon=True).start()

    def _watch(self) -> None:
        while True:
            with self._lock:
                self._drop_closed()
                self._watched = bool(self._by_handle)
                if not self._watched:
                    return
            time.sleep(_LOOK_EVERY_S)

    def _drop_closed(self) -> None:
        for handle in [handle for handle in self._by_handle if is_closed(handle)]:
            del self._by_handle[handle]


_kept = _Kept()


def keep(core: CorePool, buffer: "rmm.DeviceBuffer") -> None:
    """Hold a pool's memory until the pool has closed."""
    _kept.add(core.handle, buffer)


def give_back() -> None:
    """Give the memory of all closed pools back to its resources."""
    _kept.give_back()


def watch(core: CorePool) -> None:
    """Give a pool's memory back now, or soon after its last block is freed."""
    _kept.watch(core.handle)
