"""From what the user wrote as a capacity to bytes."""

import numbers
from typing import SupportsIndex, cast

from vramkit.errors import CapacityError, InvalidArgumentError
from vramkit.pool import _machine
from vramkit.units import format_mib, parse_bytes

Capacity = SupportsIndex | str | float

MIN_PAGE_BYTES = 64 << 10
DEFAULT_PAGE_BYTES = 2 << 20


def capacity_bytes(capacity: Capacity, *, page_bytes: int) -> int:
    """Bytes of a CPU pool's capacity.

    Args:
        capacity: Bytes, a text such as ``"2GiB"``, or a float in (0, 1] of the free memory.
        page_bytes: Size of the pool's pages: the least a pool can have.

    Raises:
        TypeError: ``capacity`` is of another type.
        CapacityError: It cannot be read, is below a page, or is more than the machine has.
    """
    wanted = _bytes_of(capacity)
    if wanted < page_bytes:
        raise CapacityError(
            f"capacity {capacity!r} is {wanted:,} bytes, less than one page of "
            f"{format_mib(page_bytes)}; a whole number counts bytes: write '2GiB' for gibibytes, "
            "or a float such as 0.5 for a part of the free memory"
        )
    most = _machine.total_bytes()
    if wanted > most:
        raise CapacityError(
            f"capacity {capacity!r} is {format_mib(wanted)}, but this process can have at most "
            f"{format_mib(most)} (the machine's memory or its control group's limit), of which "
            f"{format_mib(_machine.free_bytes())} are free now; ask for less, or for a part of "
            "the free memory with a float such as 0.5"
        )
    return wanted


def checked_page_bytes(page_bytes: SupportsIndex | str) -> int:
    """The page size in bytes.

    Raises:
        TypeError: It is no integer or text.
        InvalidArgumentError: It is no power of two, or below 64 KiB.
    """
    size = parse_bytes(page_bytes, name="page_bytes")
    if size < MIN_PAGE_BYTES or size & (size - 1):
        raise InvalidArgumentError(
            f"page_bytes must be a power of two of at least {MIN_PAGE_BYTES:,}, got {page_bytes!r}"
        )
    return size


def _bytes_of(capacity: Capacity) -> int:
    # NumPy's scalars are registered with these classes.
    value: object = capacity
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return _part_of_free(float(value))
    try:
        # What is left is an integer or a text, or parse_bytes says that it is not.
        return parse_bytes(cast("SupportsIndex | str", value), name="capacity")
    except InvalidArgumentError as err:
        raise CapacityError(str(err)) from None


def _part_of_free(part: float) -> int:
    if not 0 < part <= 1:
        raise CapacityError(
            f"capacity {part!r}: a float is a part of the free memory and must be in (0, 1]; "
            "write bytes as an integer or as a text such as '2GiB'"
        )
    return int(part * _machine.free_bytes())
