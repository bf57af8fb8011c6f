"""Which capacity to replay with: as asked for, or the smallest that completes."""

import re
from collections.abc import Callable
from fractions import Fraction

from vramkit.errors import CapacityError
from vramkit.simulate._events import Events
from vramkit.units import advised_size, format_apart, format_mib, parse_bytes

DEFAULT_CAPACITY = "1.01x"

_RATIO = re.compile(r"\s*(?P<number>-?(\d{1,60}(\.\d{0,60})?|\.\d{1,60}))\s*[xX]\s*", re.ASCII)

_ALSO = "a multiple of the trace's peak such as '1.01x'"

# Pages that the search for the smallest capacity climbs one by one before it takes strides.
CLIMB_PAGES = 256
# Beyond this many times the peak the search gives up.
_MAX_RATIO = 64


def parse_capacity(text: str, *, peak_live_bytes: int, page_bytes: int) -> int:
    """Read a capacity and round it down to whole pages.

    Args:
        text: A byte size such as ``"12GiB"``, or a multiple of the peak such as ``"1.01x"``.
        peak_live_bytes: The trace's peak.
        page_bytes: The pool's page.

    Raises:
        CapacityError: It is less than one page.
        InvalidArgumentError: It cannot be read.

    >>> parse_capacity("1.01x", peak_live_bytes=12_019_768_336, page_bytes=2 << 20) >> 21
    5788
    >>> parse_capacity("12GiB", peak_live_bytes=1, page_bytes=2 << 20) >> 30
    12
    """
    ratio = _ratio_of(text)
    if ratio is not None:
        wanted = int(ratio * peak_live_bytes)
    else:
        wanted = parse_bytes(text, name="capacity", also=_ALSO)
    capacity = wanted // page_bytes * page_bytes
    if not capacity:
        given, page = format_apart(wanted, page_bytes)
        raise CapacityError(
            f"capacity {text!r} is {given}, less than one page of {page}: the peak is "
            f"{format_mib(peak_live_bytes)}; give at least --capacity {advised_size(page_bytes)}"
        )
    return capacity


def check_capacity(text: str, *, page_bytes: int) -> None:
    """Refuse what :func:`parse_capacity` would refuse for any trace, before one is read.

    Args:
        text: As for :func:`parse_capacity`.
        page_bytes: The pool's page.

    Raises:
        CapacityError: It is less than one page, whatever the peak.
        InvalidArgumentError: It cannot be read.
    """
    if _ratio_of(text) is not None:
        return
    wanted = parse_bytes(text, name="capacity", also=_ALSO)
    if wanted < page_bytes:
        given, page = format_apart(wanted, page_bytes)
        raise CapacityError(
            f"capacity {text!r} is {given}, less than one page of {page}; give at least "
            f"--capacity {advised_size(page_bytes)}, or {_ALSO}"
        )


def _ratio_of(text: str) -> Fraction | None:
    match = _RATIO.fullmatch(text)
    if match is None:
        return None
    ratio = Fraction(match["number"])
    if ratio <= 0:
        raise CapacityError(f"capacity {text!r} must be more than 0: give {_ALSO}")
    return ratio


def find_min_capacity(events: Events, *, page_bytes: int, completes: Callable[[int], bool]) -> int:
    """Find the smallest capacity that completes.

    Whether a replay completes is not monotone in the capacity: best fit may place blocks better
    in a smaller pool. So the search climbs page by page from the peak, where a replay that
    cannot complete stops early. What it finds within ``CLIMB_PAGES`` pages is the smallest
    capacity there is. Beyond, it doubles its strides and bisects the last one: then the result
    completes, with a page less the replay does not, and all up to ``CLIMB_PAGES`` do not.

    Args:
        events: What is replayed.
        page_bytes: The pool's page.
        completes: Replays with that capacity in bytes.

    Raises:
        CapacityError: No capacity completes.
    """
    floor_pages = max(1, -(-events.peak_live_bytes // page_bytes))
    for pages in range(floor_pages, floor_pages + CLIMB_PAGES):
        if completes(pages * page_bytes):
            return pages * page_bytes
    fails, stride = floor_pages + CLIMB_PAGES - 1, CLIMB_PAGES
    while not completes((fails + stride) * page_bytes):
        fails, stride = fails + stride, 2 * stride
        if fails > _MAX_RATIO * floor_pages + CLIMB_PAGES:
            raise CapacityError(
                f"no capacity completes, up to {format_mib(fails * page_bytes)} for a peak of "
                f"{format_mib(events.peak_live_bytes)}; try another --page"
            )
    works = fails + stride
    while works - fails > 1:
        middle = (works + fails) // 2
        if completes(middle * page_bytes):
            works = middle
        else:
            fails = middle
    return works * page_bytes
