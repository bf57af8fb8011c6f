"""Random leases, growth and trimming against a plain model."""

from __future__ import annotations

import ctypes
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vramkit.loader._arena import Arena, round_capacity


class Arenas(RuleBasedStateMachine):
    """Each lease has bytes of its own, which nothing else changes."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(1 << 30)
        self.leases: list[tuple[Any, bytes]] = []
        self.most = 0

    @rule(worker=st.integers(-1, 2), size=st.integers(0, 300_000), mark=st.binary(min_size=9))
    def lease(self, worker: int, size: int, mark: bytes) -> None:
        lease = self.arena.lease(worker)
        self.arena.grow(lease.slot, max(size, len(mark)))
        assert lease.slot.capacity >= size
        ctypes.memmove(lease.slot.address, mark, len(mark))
        self.leases.append((lease, mark))
        self.most = max(self.most, len(self.leases))

    @rule(size=st.integers(1, 600_000))
    def grow(self, size: int) -> None:
        if self.leases:
            slot = self.leases[0][0].slot
            before = slot.capacity
            self.arena.grow(slot, size)
            assert slot.capacity == (before if size <= before else round_capacity(size))

    @rule(position=st.integers(0, 9))
    def give_back(self, position: int) -> None:
        if self.leases:
            self.leases.pop(position % len(self.leases))

    @rule(keep=st.integers(0, 3))
    def trim(self, keep: int) -> None:
        self.arena.trim(keep)

    @invariant()
    def bytes_are_unchanged(self) -> None:
        for lease, mark in self.leases:
            assert ctypes.string_at(lease.slot.address, len(mark)) == mark

    @invariant()
    def slots_are_used_again(self) -> None:
        indices = {lease.slot.index for lease, _ in self.leases}
        assert len(indices) == len(self.leases)
        assert self.arena.slots == self.most

    def teardown(self) -> None:
        self.arena.close()
        self.bytes_are_unchanged()
        self.leases.clear()
        assert self.arena.capacity_bytes == 0


TestArenas = Arenas.TestCase
TestArenas.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
