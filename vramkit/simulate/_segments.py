"""The snapshot's own picture of the memory at the time when it was taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from vramkit.errors import TraceError
from vramkit.simulate._events import Int64
from vramkit.simulate._fields import check_unshared, field, is_private, size, unsigned


class _Block(NamedTuple):
    address: int
    requested_bytes: int
    stream: int


@dataclass(frozen=True)
class Picture:
    """The segments of one device, those of private pools apart.

    Attributes:
        reserved_bytes: Bytes of all segments but the private ones.
        live: Rows of (addr, size, stream) of the live blocks in them, ascending by address.
        private_live: The same of the private segments.
        private_ranges: Rows of (first address, bytes) of the private segments.
    """

    reserved_bytes: int
    live: Int64
    private_live: Int64
    private_ranges: Int64

    @property
    def live_bytes(self) -> int:
        """Requested bytes of the live blocks outside private pools."""
        return sum(self.live[:, 1].tolist())


def read_picture(segments: object, ordinal: int) -> Picture:
    """Read the segments of a device.

    Raises:
        TraceError: They are no list of segments, or two blocks have one address.
    """
    if type(segments) is not list:
        raise TraceError("the snapshot's 'segments' is not a list; the file is damaged")
    reserved_bytes = 0
    live: list[_Block] = []
    private_live: list[_Block] = []
    private_ranges: list[tuple[int, int]] = []
    for segment, where in _of_device(segments, ordinal):
        segment_bytes = 0
        private = is_private(segment, "segment_pool_id", where)
        for block, block_bytes in _blocks(segment, where):
            segment_bytes += block_bytes
            if block is not None:
                (private_live if private else live).append(block)
        if private:
            private_ranges.append((unsigned(segment, "address", where), segment_bytes))
        else:
            reserved_bytes += segment_bytes
    return Picture(
        reserved_bytes=reserved_bytes,
        live=_rows(live),
        private_live=_rows(private_live),
        private_ranges=np.array(private_ranges, dtype=np.uint64).view(np.int64).reshape(-1, 2),
    )


def _of_device(segments: list[Any], ordinal: int) -> list[tuple[dict[str, Any], str]]:
    found = []
    for number, segment in enumerate(segments):
        where = f"segment {number}"
        if type(segment) is not dict:
            raise TraceError(f"{where} is a {type(segment).__name__}, not a dict")
        if "device" not in segment or field(segment, "device", int, where) == ordinal:
            found.append((segment, where))
    check_unshared(
        [field(segment, "blocks", list, where) for segment, where in found],
        "the blocks of segments",
    )
    return found


def _blocks(segment: dict[str, Any], where: str) -> Iterator[tuple[_Block | None, int]]:
    """Each block, or ``None`` for a free one, and its bytes in the segment."""
    stream = unsigned(segment, "stream", where)
    address = unsigned(segment, "address", where)
    where = f"a block of {where}"
    for block in segment["blocks"]:
        if type(block) is not dict:
            raise TraceError(f"{where} is not a dict; the file is damaged")
        block_bytes = size(block, "size", where)
        # Blocks carry their address since torch 2.1, and their requested size since 2.0.
        address = unsigned(block, "address", where) if "address" in block else address
        if address + block_bytes > 1 << 64:
            raise TraceError(f"{where} ends beyond the addresses of 64 bits; the file is damaged")
        requested = "requested_size" if "requested_size" in block else "size"
        is_live = field(block, "state", str, where).startswith("active")
        yield (
            _Block(address, size(block, requested, where), stream) if is_live else None,
            block_bytes,
        )
        address += block_bytes


def _rows(blocks: list[_Block]) -> Int64:
    blocks.sort()
    for one, other in pairwise(blocks):
        if one.address == other.address:
            raise TraceError(
                f"the snapshot's segments hold two live blocks at address {one.address:#x}; "
                "the file is damaged"
            )
    # Addresses and streams are unsigned; as identities they may wrap.
    columns = [(block.address, block.requested_bytes, block.stream) for block in blocks]
    return np.array(columns, dtype=np.uint64).view(np.int64).reshape(-1, 3)
