"""Pools on memory that an RMM resource gave: taken once, given back when the pool has closed."""

import threading
import time
from typing import TYPE_CHECKING

from vramkit._core import CorePool, owner
from vramkit.errors import CapacityError, InvalidArgumentError, PoolClosedError
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
        TypeError: ``upstream`` is no RMM resource.
        CapacityError: The resource does not have that much.
        InvalidArgumentError: The resource's memory is itself a vramkit pool's.
    """
    import torch

    rmm = rmm_module()
    if not isinstance(upstream, rmm.mr.DeviceMemoryResource):
        raise TypeError(
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


class _Orphans:
    """Memory whose pool object is gone while tensors are still in the pool."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may let go of a pool in the midst of what holds it.
        self._lock = threading.RLock()
        self._by_handle: dict[int, tuple[CorePool, rmm.DeviceBuffer]] = {}
        self._watched = False

    def add(self, core: CorePool, buffer: "rmm.DeviceBuffer") -> None:
        with self._lock:
            self._by_handle[core.handle] = (core, buffer)
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, name="vramkit-upstream", daemon=True).start()

    def _watch(self) -> None:
        while self._drop_closed():
            time.sleep(_LOOK_EVERY_S)

    def _drop_closed(self) -> bool:
        """False when none is left to watch."""
        with self._lock:
            for handle, (core, _) in list(self._by_handle.items()):
                if _is_closed(core):
                    del self._by_handle[handle]
            # False first: what the collector adds after the question starts a thread of its own.
            self._watched = False
            if self._by_handle:
                self._watched = True
            return self._watched


_orphans = _Orphans()


def keep_until_closed(core: CorePool, buffer: "rmm.DeviceBuffer") -> None:
    """Hold the memory until the pool's last block is freed; then give it back."""
    _orphans.add(core, buffer)


def _is_closed(core: CorePool) -> bool:
    try:
        core.stats()
    except PoolClosedError:
        return True
    return False
