"""From what the user wrote as a capacity to bytes."""

import bisect
import numbers
from dataclasses import dataclass
from typing import SupportsIndex, cast

from vramkit.errors import CapacityError, InvalidArgumentError
from vramkit.pool import _cuda, _host_memory
from vramkit.pool._device import PoolDevice
from vramkit.units import advised_size, format_apart, format_mib, parse_bytes

Capacity = SupportsIndex | str | float

# The core's limits (csrc/pool/engine.cpp).
MIN_PAGE_BYTES = 64 << 10
MAX_PAGE_BYTES = 1 << 30
# No GPU maps less, and it is the size of the processor's huge pages.
SMALLEST_DEFAULT_PAGE_BYTES = 2 << 20
# On CUDA mapping costs about 60 us a page of any size, and a pool has to be mapped within 0.8 s;
# 1.01 x the peak of a training loop is enough from about 2,000 pages on (docs/design/stitching.md).
_CUDA_PAGE_DOUBLES_AT_BYTES = (8 << 30, 32 << 30, 64 << 30, 128 << 30)


_PART = "a float such as 0.5 for a part of the free memory"


@dataclass(frozen=True)
class Room:
    """The memory that a pool could have.

    Attributes:
        free_bytes: What is free now; a float as capacity is a part of it.
        most_bytes: No capacity can be above this.
        text: Both, and who holds the rest, for an error.
    """

    free_bytes: int
    most_bytes: int
    text: str


def room_on(device: PoolDevice, *, held_bytes: int = 0) -> Room:
    """The memory of a device.

    Args:
        device: Which.
        held_bytes: What the pool itself holds of it: a pool that is resized.
    """
    if device.kind == "cuda":
        free = _cuda.free_bytes(device.ordinal)
        return Room(free, free + held_bytes, _cuda.describe_memory(device.ordinal))
    free, most = _host_memory.free_bytes(), _host_memory.total_bytes()
    text = (
        f"this process can have at most {format_mib(most)} (the machine's memory or its control "
        f"group's limit), of which {format_mib(free)} are free now"
    )
    return Room(free, most, text)


def capacity_bytes(
    capacity: Capacity, *, page_bytes: int, room: Room | None, name: str = "capacity"
) -> int:
    """Bytes of a pool's capacity.

    Args:
        capacity: Bytes, a text such as ``"2GiB"``, or a float in (0, 1] of the free memory.
        page_bytes: Size of the pool's pages: the least a pool can have.
        room: The memory there is; ``None`` where only its giver knows (``upstream``).
        name: What the capacity is called, for the error's text.

    Raises:
        ArgumentTypeError: ``capacity`` is of another type.
        CapacityError: It cannot be read, is below a page, or is more than there is.
    """
    wanted = _bytes_of(capacity, room, name)
    if wanted < page_bytes:
        least, page = format_apart(wanted, page_bytes)
        raise CapacityError(
            f"{name} {capacity!r} is {least}, less than one page of {page}; a whole number "
            f"counts bytes: give at least '{advised_size(page_bytes)}'" + _or_a_part(room)
        )
    if room is not None and wanted > room.most_bytes:
        asked, _ = format_apart(wanted, room.most_bytes)
        raise CapacityError(
            f"{name} {capacity!r} is {asked}, but {room.text}; " + _less(room, page_bytes)
        )
    return wanted


def _or_a_part(room: Room | None) -> str:
    return "" if room is None else f", or {_PART}"


def _less(room: Room, page_bytes: int) -> str:
    if room.most_bytes < page_bytes:
        return f"free memory first: a pool needs at least '{advised_size(page_bytes)}'"
    most = advised_size(room.most_bytes, at_most=True)
    return f"ask for at most '{most}', or give {_PART}"


def checked_page_bytes(page_bytes: SupportsIndex | str, *, name: str = "page_bytes") -> int:
    """The page size in bytes.

    Args:
        page_bytes: Bytes, or a text such as ``"2MiB"``.
        name: What the page size is called, for the error's text.

    Raises:
        ArgumentTypeError: It is no integer or text.
        InvalidArgumentError: It is no power of two, below 64 KiB, or above 1 GiB.
    """
    size = parse_bytes(page_bytes, name=name)
    if not MIN_PAGE_BYTES <= size <= MAX_PAGE_BYTES or size & (size - 1):
        least, most = advised_size(MIN_PAGE_BYTES), advised_size(MAX_PAGE_BYTES)
        usual = advised_size(SMALLEST_DEFAULT_PAGE_BYTES)
        raise InvalidArgumentError(
            f"{name} must be a power of two from '{least}' to '{most}', got {page_bytes!r}; the "
            f"usual one is '{usual}'"
        )
    return size


def default_page_bytes(device: PoolDevice, capacity_bytes: int) -> int:
    """The page size in bytes of a pool for which none was asked."""
    if device.kind != "cuda":
        return SMALLEST_DEFAULT_PAGE_BYTES
    doublings = bisect.bisect_right(_CUDA_PAGE_DOUBLES_AT_BYTES, capacity_bytes)
    return SMALLEST_DEFAULT_PAGE_BYTES << doublings


def _bytes_of(capacity: Capacity, room: Room | None, name: str) -> int:
    # NumPy's scalars are registered with these classes.
    value: object = capacity
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return _part_of_free(float(value), room, name)
    try:
        # What is left is an integer or a text, or parse_bytes says that it is not.
        also = "" if room is None else _PART
        return parse_bytes(cast("SupportsIndex | str", value), name=name, also=also)
    except InvalidArgumentError as err:
        raise CapacityError(str(err)) from None


def _part_of_free(part: float, room: Room | None, name: str) -> int:
    if room is None:
        raise CapacityError(
            f"{name} {part!r}: a float is a part of the free memory, and with upstream= nobody "
            "knows what the resource could give; write bytes, or a text such as '2GiB'"
        )
    if not 0 < part <= 1:
        raise CapacityError(
            f"{name} {part!r}: a fraction of the free memory must be in (0, 1]; "
            "write bytes as an integer or as a text such as '2GiB'"
        )
    return int(part * room.free_bytes)
