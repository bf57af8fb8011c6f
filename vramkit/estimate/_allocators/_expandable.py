"""PyTorch's CUDA caching allocator with ``expandable_segments:True``.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp``: each stream has one segment for small
and one for large requests, in an address range of 9/8 of the device. Memory is mapped behind a
block in pieces of 2 MiB or 20 MiB when no free block fits, and stays mapped.
"""

from __future__ import annotations

from ._blocks import Block, FreeList
from ._settings import MIN_BLOCK_BYTES, SMALL_BYTES, SMALL_SEGMENT_BYTES, Settings

# Apart from each other, so that no two segments' addresses meet.
_SEGMENT_BYTES = 1 << 44


class ExpandableAllocator:
    """The allocator of one device.

    Attributes:
        reserved_bytes: Bytes of all mapped memory.
        allocated_bytes: Bytes of all blocks that are given out.
        retries: Always 0: without a limit nothing is unmapped.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Start empty."""
        self.reserved_bytes = 0
        self.allocated_bytes = 0
        self.retries = 0
        self._settings = settings or Settings()
        self._pools: dict[tuple[int, bool], _Segment] = {}

    def allocate(self, request_bytes: int, stream: int = 0) -> Block:
        """Give out a block."""
        size = self._settings.round_size(request_bytes)
        pool = self._segment(stream, size <= SMALL_BYTES)
        block = pool.take_free(size)
        if block is None:
            before = pool.mapped_bytes
            block = pool.grow(size)
            self.reserved_bytes += pool.mapped_bytes - before
        if block.size - size >= MIN_BLOCK_BYTES:
            pool.free_blocks.add(block.split(size))
        block.free = False
        self.allocated_bytes += block.size
        return block

    def free(self, block: Block) -> None:
        """Take a block back and merge it with its free neighbours."""
        self.allocated_bytes -= block.size
        block.free = True
        self._segment(block.stream, block.small).put_back(block)

    def _segment(self, stream: int, small: bool) -> _Segment:
        segment = self._pools.get((stream, small))
        if segment is None:
            piece = SMALL_SEGMENT_BYTES if small else self._settings.large_segment_bytes
            address = len(self._pools) * _SEGMENT_BYTES
            segment = self._pools[stream, small] = _Segment(address, piece, small, stream)
        return segment


class _Segment:
    """One expandable segment, with its free mapped blocks and its unmapped ones."""

    def __init__(self, address: int, piece_bytes: int, small: bool, stream: int) -> None:
        self.free_blocks = FreeList()
        self.mapped_bytes = 0
        self._base = address
        self._piece_bytes = piece_bytes
        unmapped = Block(address, _SEGMENT_BYTES, small=small, stream=stream)
        unmapped.mapped = False
        # Without a limit memory is only ever mapped at the end, so there is one unmapped block.
        self._unmapped = unmapped

    def take_free(self, size: int) -> Block | None:
        """Best fit, where the block before the unmapped end counts with what it can grow by."""
        fitting = self.free_blocks.at_least(size)
        if not fitting:
            return None
        chosen = fitting[0]
        for other in fitting[1:]:
            if self._growable(other) >= self._growable(chosen):
                break
            chosen = other
        self.free_blocks.remove(chosen)
        return chosen

    def grow(self, size: int) -> Block:
        """Map as many pieces at the end as a request needs beyond a free last block."""
        end = self._unmapped
        last = end.previous
        usable = last.size if last is not None and last.free else 0
        start = end.address - self._base
        pieces_end = -(-(start + size - usable) // self._piece_bytes) * self._piece_bytes
        grown = pieces_end - start
        self._unmapped = end.split(grown)
        end.mapped = True
        self.mapped_bytes += grown
        if last is not None and usable:
            self.free_blocks.remove(last)
            last.absorb_next()
            return last
        return end

    def put_back(self, block: Block) -> None:
        """Make a block free and merge it with its mapped free neighbours."""
        after, before = block.next, block.previous
        if after is not None and after.free and after.mapped:
            self.free_blocks.remove(after)
            block.absorb_next()
        if before is not None and before.free:
            self.free_blocks.remove(before)
            before.absorb_next()
            block = before
        self.free_blocks.add(block)

    def _growable(self, block: Block) -> int:
        after = block.next
        return block.size + (after.size if after is not None and not after.mapped else 0)
