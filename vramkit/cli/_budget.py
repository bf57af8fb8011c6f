"""Reads ``--budget``: the capacity of a command's pool."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vramkit.pool._device import PoolDevice

# A number with a point is a part of the free memory.
_PART = re.compile(r"[0-9]{0,20}\.[0-9]{1,20}", re.ASCII)


def read_budget(text: str) -> str | float:
    """Read a plain number with a point as a float: to a pool, a text is always a size.

    >>> read_budget("0.5"), read_budget("8GiB"), read_budget("1.5GiB"), read_budget("1.5")
    (0.5, '8GiB', '1.5GiB', 1.5)
    """
    return float(text) if _PART.fullmatch(text) else text


def capacity_of(capacity: str | float, device: "PoolDevice") -> int:
    """The pool's capacity in bytes.

    Args:
        capacity: What :func:`read_budget` has read.
        device: Where the pool will be.

    Raises:
        CapacityError: It cannot be read, is less than a page, or more than there is.
    """
    from vramkit.pool import _capacity

    return _capacity.capacity_bytes(
        capacity,
        page_bytes=_capacity.SMALLEST_DEFAULT_PAGE_BYTES,
        room=_capacity.room_on(device),
        name="--budget",
    )
