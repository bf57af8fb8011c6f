"""PyTorch's native CUDA caching allocator.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.11 to 2.15): two pools a
stream, segments by size, best fit, split, coalesce, and one retry after the segments that are
wholly free have gone back. Replaying thirteen recorded traces of an H100 with the addresses that
its driver gave makes the same segments, event by event (``tests/estimate/test_allocators.py``).
"""

from __future__ import annotations

from ._blocks import Block, FreeList
from ._driver import Addresses, Driver
from ._settings import MIN_BLOCK_BYTES, SMALL_BYTES, Settings


class NativeAllocator:
    """The allocator of one device.

    Attributes:
        reserved_bytes: Bytes of all segments.
        allocated_bytes: Bytes of all blocks that are given out.
        retries: How often segments were given back to serve a request.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        capacity_bytes: int = 1 << 62,
        driver: Addresses | None = None,
    ) -> None:
        """Start empty.

        Args:
            settings: The allocator's options.
            capacity_bytes: Most bytes that segments can take together.
            driver: Gives segments their addresses; :class:`Driver` by default.
        """
        self.reserved_bytes = 0
        self.allocated_bytes = 0
        self.retries = 0
        self._settings = settings or Settings()
        self._capacity_bytes = capacity_bytes
        self._driver = driver or Driver()
        self._free: dict[tuple[int, bool], FreeList] = {}

    def allocate(self, request_bytes: int, stream: int = 0) -> Block | None:
        """Give out a block, or None where the capacity does not allow it."""
        size = self._settings.round_size(request_bytes)
        small = size <= SMALL_BYTES
        pool = self._pool(stream, small)
        block = self._take_free(pool, size) or self._make_segment(size, small, stream)
        if block is None:
            return None
        self._trim(block, size, pool)
        block.free = False
        self.allocated_bytes += block.size
        return block

    def free(self, block: Block) -> None:
        """Take a block back and merge it with its free neighbours."""
        self.allocated_bytes -= block.size
        block.free = True
        pool = self._pool(block.stream, block.small)
        if block.next is not None and block.next.free:
            pool.remove(block.next)
            block.absorb_next()
        before = block.previous
        if before is not None and before.free:
            pool.remove(before)
            before.absorb_next()
            block = before
        pool.add(block)

    def _pool(self, stream: int, small: bool) -> FreeList:
        pool = self._free.get((stream, small))
        if pool is None:
            pool = self._free[stream, small] = FreeList()
        return pool

    def _take_free(self, pool: FreeList, size: int) -> Block | None:
        block = pool.best_fit(size)
        if block is None or not self._may_use(block, size):
            return None
        pool.remove(block)
        return block

    def _may_use(self, block: Block, size: int) -> bool:
        """Oversized blocks are neither split nor given to much smaller requests."""
        limit = self._settings.max_split_bytes
        if size < limit <= block.size:
            return False
        rounding = self._settings.max_non_split_rounding_bytes
        return not (size >= limit and block.size >= size + rounding)

    def _make_segment(self, size: int, small: bool, stream: int) -> Block | None:
        segment_bytes = self._settings.segment_size(size)
        if self.reserved_bytes + segment_bytes > self._capacity_bytes:
            self.retries += 1
            self._release_free_segments()
        if self.reserved_bytes + segment_bytes > self._capacity_bytes:
            return None
        self.reserved_bytes += segment_bytes
        address = self._driver.allocate(segment_bytes)
        return Block(address, segment_bytes, small=small, stream=stream)

    def _trim(self, block: Block, size: int, pool: FreeList) -> None:
        rest = block.size - size
        if block.small:
            splits = rest >= MIN_BLOCK_BYTES
        else:
            splits = size < self._settings.max_split_bytes and rest > SMALL_BYTES
        if splits:
            pool.add(block.split(size))

    def _release_free_segments(self) -> None:
        for pool in self._free.values():
            for block in pool.all():
                if block.previous is None and block.next is None:
                    pool.remove(block)
                    self._driver.free(block.address, block.size)
                    self.reserved_bytes -= block.size
