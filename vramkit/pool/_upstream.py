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

_LOOK_EVERY_S = 0.1

# Memory whose pool object is gone while tensors are still in the pool.
_orphans: "list[tuple[CorePool, rmm.DeviceBuffer]]" = []
_lock = threading.Lock()


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


def keep_until_closed(core: CorePool, buffer: "rmm.DeviceBuffer") -> None:
    """Hold the memory until the pool's last block is freed; then give it back."""
    with _lock:
        _orphans.append((core, buffer))
        if len(_orphans) == 1:
            threading.Thread(target=_watch, name="vramkit-upstream", daemon=True).start()


def _watch() -> None:
    while True:
        with _lock:
            _orphans[:] = [orphan for orphan in _orphans if not _is_closed(orphan[0])]
            if not _orphans:
                return
        time.sleep(_LOOK_EVERY_S)


def _is_closed(core: CorePool) -> bool:
    try:
        core.stats()
    except PoolClosedError:
        return True
    return False
