"""Creates a pool of the core on a device."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex

from vramkit._core import CorePool
from vramkit.errors import CapacityError, InvalidArgumentError, PoolOutOfMemoryError
from vramkit.pool import _adapter, _capacity, _cuda, _upstream
from vramkit.pool._device import PoolDevice

if TYPE_CHECKING:
    from rmm.mr import DeviceMemoryResource


@dataclass(frozen=True)
class CreatedPool:
    """A new pool.

    Attributes:
        core: The pool.
        page_bytes: Size of its pages.
    """

    core: CorePool
    page_bytes: int


def create_core(
    capacity: _capacity.Capacity,
    *,
    device: PoolDevice,
    page_bytes: SupportsIndex | str | None,
    overflow_native: bool,
    upstream: "DeviceMemoryResource | None",
) -> CreatedPool:
    """Create the pool, and route PyTorch's allocator for that device to it.

    Raises:
        ArgumentTypeError: An argument is of the wrong type.
        CapacityError: The capacity cannot be read, or the device does not have it.
        InvalidArgumentError: Another argument can never work.
        NativeLibraryError: A native library is missing and cannot be built.
    """
    if upstream is not None and device.kind != "cuda":
        raise InvalidArgumentError(
            f"upstream= is for CUDA pools and the device is {device.name!r}; pass device='cuda'"
        )
    if upstream is not None and page_bytes is None:
        page_bytes = _upstream.PAGE_BYTES
    page = None if page_bytes is None else _capacity.checked_page_bytes(page_bytes)
    if device.kind == "cuda":
        _cuda.start(device.ordinal)
    room = None if upstream is not None else _capacity.room_on(device)
    wanted = _capacity.capacity_bytes(
        capacity, page_bytes=page or _capacity.SMALLEST_DEFAULT_PAGE_BYTES, room=room
    )
    page = page or _capacity.default_page_bytes(device, wanted)
    if device.kind == "cuda":
        _adapter.install_cuda()
    else:
        _adapter.install_cpu()
    if upstream is None:
        core = _create_on(device.backend, device, wanted, page, overflow_native)
        return CreatedPool(core, page)
    buffer, address, usable = _upstream.take(
        upstream, wanted, page_bytes=page, ordinal=device.ordinal
    )
    core = _create_on(f"{device.backend}@{address}", device, usable, page, overflow_native)
    _upstream.keep(core, buffer)
    return CreatedPool(core, page)


def _create_on(
    backend: str, device: PoolDevice, size_bytes: int, page: int, overflow_native: bool
) -> CorePool:
    try:
        return CorePool.create(
            backend=backend,
            label=device.name,
            capacity_bytes=size_bytes,
            page_bytes=page,
            overflow_native=overflow_native,
        )
    except PoolOutOfMemoryError as err:
        # Somebody took the memory after we looked.
        raise CapacityError(str(err)) from err
