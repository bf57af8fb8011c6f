"""Blocks of segments, and the free ones of one stream in order of size."""

from __future__ import annotations

from bisect import bisect_left, insort


class Block:
    """A part of a segment.

    Attributes:
        address: Where it starts.
        size: Its bytes.
        small: Whether it is of a segment for small requests.
        stream: The stream of its segment.
        free: Whether it can be given out.
        mapped: Whether there is memory behind it; only expandable segments have other blocks.
        previous: The block before it in the segment.
        next: The block behind it in the segment.
    """

    __slots__ = ("address", "free", "mapped", "next", "previous", "size", "small", "stream")

    def __init__(self, address: int, size: int, *, small: bool, stream: int) -> None:
        self.address = address
        self.size = size
        self.small = small
        self.stream = stream
        self.free = True
        self.mapped = True
        self.previous: Block | None = None
        self.next: Block | None = None

    def split(self, size: int) -> Block:
        """Cut the block after ``size`` bytes and return the rest, as a new neighbour."""
        rest = Block(self.address + size, self.size - size, small=self.small, stream=self.stream)
        rest.previous, rest.next = self, self.next
        rest.mapped = self.mapped
        if self.next is not None:
            self.next.previous = rest
        self.next, self.size = rest, size
        return rest

    def absorb_next(self) -> None:
        """Take the next block in."""
        taken = self.next
        assert taken is not None
        self.size += taken.size
        self.next = taken.next
        if self.next is not None:
            self.next.previous = self


class FreeList:
    """Free blocks in order of size, those of one size in order of address."""

    def __init__(self) -> None:
        self._keys: list[tuple[int, int]] = []
        self._blocks: dict[int, Block] = {}

    def add(self, block: Block) -> None:
        """Put a block in."""
        insort(self._keys, (block.size, block.address))
        self._blocks[block.address] = block

    def remove(self, block: Block) -> None:
        """Take a block out; its size must be that with which it was added."""
        del self._keys[bisect_left(self._keys, (block.size, block.address))]
        del self._blocks[block.address]

    def at_least(self, size: int) -> list[Block]:
        """Return the blocks of at least ``size`` bytes, the smallest first."""
        return [self._blocks[key[1]] for key in self._keys[bisect_left(self._keys, (size, 0)) :]]

    def best_fit(self, size: int) -> Block | None:
        """Return the smallest block of at least ``size`` bytes; of several, the lowest."""
        place = bisect_left(self._keys, (size, 0))
        return self._blocks[self._keys[place][1]] if place < len(self._keys) else None

    def all(self) -> list[Block]:
        """Return every block."""
        return list(self._blocks.values())
