"""Replays events through a simulated allocator."""

from __future__ import annotations

from dataclasses import dataclass

from vramkit._core import ReplayOp
from vramkit.simulate import Events

from ._blocks import Block
from ._expandable import ExpandableAllocator
from ._native import NativeAllocator


@dataclass(frozen=True)
class Peaks:
    """What an allocator had at most.

    Attributes:
        allocated_bytes: Most bytes of blocks given out.
        reserved_bytes: Most bytes of segments.
        growths: Each event at which segments were made or grown, and by how many bytes.
        failed_event: The event that the capacity did not allow, or None.
        retries: How often segments were given back to serve a request.
    """

    allocated_bytes: int
    reserved_bytes: int
    growths: tuple[tuple[int, int], ...]
    failed_event: int | None
    retries: int


def replay(events: Events, allocator: NativeAllocator | ExpandableAllocator) -> Peaks:
    """Replay events until they end, or until the allocator's capacity is used up."""
    blocks: dict[int, Block] = {}
    allocated = reserved = before = 0
    growths = []
    failed = None
    columns = (events.op, events.block_id, events.size_bytes, events.stream)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for number, (op, identity, size, stream) in enumerate(rows):
        if op == ReplayOp.FREE:
            allocator.free(blocks.pop(identity))
            continue
        block = allocator.allocate(size, stream)
        if block is None:
            failed = number
            break
        blocks[identity] = block
        allocated = max(allocated, allocator.allocated_bytes)
        if allocator.reserved_bytes != before:
            growths.append((number, allocator.reserved_bytes - before))
            before = allocator.reserved_bytes
            reserved = max(reserved, before)
    return Peaks(allocated, reserved, tuple(growths), failed, allocator.retries)
