"""What lies at the addresses of this process, as the system tells it."""

import bisect
import ctypes
import dataclasses
import functools
import mmap
from dataclasses import dataclass
from pathlib import Path

_PAGE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of addresses that are mapped alike.

    Attributes:
        begin: The first address.
        end: The address after the last.
        access: As in ``/proc/self/maps``, for example ``"rw-p"``.
        path: The file that is mapped, ``"[heap]"`` and the like, or nothing.
    """

    begin: int
    end: int
    access: str
    path: str

    @property
    def writable(self) -> bool:
        """Whether this process may write there."""
        return "w" in self.access

    @property
    def private(self) -> bool:
        """Whether a forked child gets a copy."""
        return "p" in self.access

    def goes_on_with(self, after: "Mapping") -> bool:
        """Whether the other one begins where this one ends, and is of the same kind."""
        kinds = [(each.access, each.path) for each in (self, after)]
        return self.end == after.begin and kinds[0] == kinds[1]

    @property
    def of_file(self) -> bool:
        """Whether a file is mapped, if only one in memory."""
        return self.path.startswith("/")


def mappings() -> list[Mapping]:
    """Return all mappings of this process in the order of their addresses."""
    found = []
    for line in Path("/proc/self/maps").read_text(errors="replace").rstrip("\n").split("\n"):
        span, access, _offset, _device, _inode, *path = line.split(maxsplit=5)
        begin, end = (int(each, 16) for each in span.split("-"))
        found.append(Mapping(begin, end, access, path[0] if path else ""))
    return found


def mapping_of(begin: int, end: int, among: list[Mapping]) -> Mapping | None:
    """Return the mapping that has a range of addresses; None if there is none.

    Neighbours of one access and one path count as one: the system divides mappings, for example by
    the size of their pages.
    """
    at = bisect.bisect_right(among, begin, key=lambda each: each.begin) - 1
    if at < 0 or begin >= among[at].end:
        return None
    whole = among[at]
    for each in among[at + 1 :]:
        if whole.end >= end or not whole.goes_on_with(each):
            break
        whole = dataclasses.replace(whole, end=each.end)
    return whole if whole.end >= end else None


@functools.cache
def _mincore() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None, use_errno=True).mincore
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return function


def is_resident(begin: int, end: int) -> bool:
    """Whether all pages of a range, which begins with a page, are in memory."""
    pages = bytearray(-(-(end - begin) // _PAGE))
    target = (ctypes.c_char * len(pages)).from_buffer(pages)
    if _mincore()(begin, end - begin, ctypes.addressof(target)):
        return False
    del target
    # The lowest bit of each byte; the others may be anything.
    return all(each & 1 for each in pages)
