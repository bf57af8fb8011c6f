"""Random leases, growth and trimming against a plain model."""

from __future__ import annotations

import ctypes
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vramkit.loader import _memory_map
from vramkit.loader._arena import Arena, round_capacity, slot_offset


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


class _Pins:
    """Pins as the driver does, without one."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}

    def pin(self, address: int, size_bytes: int) -> bool:
        self.held[address] = size_bytes
        return True

    def unpin(self, address: int) -> None:
        del self.held[address]


def _pinned_arena(budget_bytes: int = 1 << 30) -> tuple[Arena, _Pins]:
    pins: Any = _Pins()
    return Arena(budget_bytes, pins), pins


def test_what_workers_are_filling_is_pinned_after_the_first_batch() -> None:
    arena, pins = _pinned_arena()
    with arena:
        leases = [arena.lease(worker) for worker in range(4)]
        arena.expect(7, lambda: [lease.slot for lease in leases[1:]])
        arena.map(leases[0].slot, round_capacity(500_000))
        _memory_map.commit(arena.fd, slot_offset(1), 4096)
        window = _memory_map.map_file(arena.fd, slot_offset(1), 4096)
        ctypes.memset(window, 7, 4096)
        assert len(pins.held) == 1
        arena.settle()
        assert len(pins.held) == arena.slots == 7
        assert min(slot.capacity for slot in arena._slots) >= 500_000
        assert ctypes.string_at(leases[1].slot.address, 4096) == bytes([7]) * 4096
        before = dict(pins.held)
        arena.settle()
        # The worker had been told of no memory, and made a smaller batch.
        arena.map(leases[1].slot, round_capacity(1_000))
        more = [arena.lease() for _ in range(3)]
        for lease in more:
            arena.grow(lease.slot, 500_000)
        assert pins.held == before
        _memory_map.unmap(window, 4096)
        leases.clear()
        del lease, more
    assert not pins.held


def test_slots_are_not_made_ahead_beyond_the_budget_or_unpinned() -> None:
    arena, pins = _pinned_arena(budget_bytes=4 << 20)
    with arena, Arena(1 << 30) as unpinned:
        for each in (arena, unpinned):
            lease = each.lease()
            each.expect(5)
            each.grow(lease.slot, 1 << 20)
            each.settle()
            assert each.slots == 1
            del lease
        assert len(pins.held) == 1


def test_expected_slots_come_after_the_first() -> None:
    arena, pins = _pinned_arena()
    with arena:
        arena.expect(5)
        lease = arena.lease()
        arena.grow(lease.slot, 300_000)
        assert len(pins.held) == 1
        arena.settle()
        assert len(pins.held) == arena.slots == 5
        later = [arena.lease() for _ in range(4)]
        for each in later:
            arena.grow(each.slot, 300_000)
        assert len(pins.held) == arena.slots == 5
