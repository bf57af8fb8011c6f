"""Random leases, growth and trimming against a plain model."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch.utils.data import TensorDataset

import vramkit
from vramkit.loader._address_space import mappings
from vramkit.loader._arena import Arena
from vramkit.loader._slot_memory import OwnMemory, round_capacity


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


def test_a_batch_that_is_smaller_than_its_slot_moves_nothing() -> None:
    arena, pins = _pinned_arena()
    with arena:
        lease = arena.lease(0)
        arena.grow(lease.slot, 500_000)
        before = dict(pins.held)
        # The worker had been told of no memory, and made a smaller batch.
        arena.map(lease.slot, round_capacity(1_000))
        assert pins.held == before
        del lease


def test_memory_of_this_process_alone() -> None:
    pins: Any = _Pins()
    with Arena(1 << 30, pins, OwnMemory(inherited=False)) as arena:
        lease = arena.lease()
        arena.grow(lease.slot, 3_000_001)
        address, capacity = lease.slot.address, lease.slot.capacity
        assert address % (1 << 21) == 0
        ctypes.memset(address, 5, capacity)
        arena.grow(lease.slot, 2 * capacity)
        ctypes.memset(lease.slot.address, 6, lease.slot.capacity)
        assert pins.held == {lease.slot.address: lease.slot.capacity}
        child = os.fork()
        if child == 0:
            begins = {each.begin for each in mappings()}
            os._exit(lease.slot.address in begins)
        assert os.waitpid(child, 0)[1] == 0
        assert lease.slot.address in {each.begin for each in mappings()}
        del lease
        arena.trim(0)
        assert (pins.held, arena.capacity_bytes) == ({}, 0)


def test_no_slots_are_added_while_all_are_in_use() -> None:
    arena, pins = _pinned_arena()
    with arena:
        arena.prepare(4, 300_000)
        leases = [arena.lease() for _ in range(4)]
        arena.prepare(4, 300_000)
        assert len(pins.held) == arena.slots == 4
        leases.clear()
        arena.prepare(4, 600_000)
        assert {slot.capacity for slot in arena._slots} == {round_capacity(600_000)}


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


def test_memory_beyond_the_budget_is_given_back_as_soon_as_it_is_free() -> None:
    with Arena(400_000) as arena:
        leases = [arena.lease() for _ in range(5)]
        for lease in leases:
            arena.grow(lease.slot, 100_000)
        assert arena.is_beyond_budget
        del lease
        leases.clear()
        kept = arena.lease()
        assert not arena.is_beyond_budget
        assert kept.slot.capacity == arena.capacity_bytes
        del kept


def test_a_lease_within_the_budget_or_none() -> None:
    with Arena(400_000, memory=OwnMemory(inherited=True)) as arena:
        leases = [arena.lease_within(100_000) for _ in range(3)]
        assert [lease is None for lease in leases] == [False] * 3
        assert arena.lease_within(100_000) is None
        assert arena.capacity_bytes == 3 * round_capacity(100_000)
        leases.pop()
        assert arena.lease_within(90_000) is not None
        assert arena.lease_within(500_000) is None


@pytest.mark.parametrize("path", ["arrays", "workers"])
def test_batches_that_are_kept_leave_staging_memory(path: str) -> None:
    rows = torch.arange(64.0).repeat_interleave(40_000).view(64, -1)
    loader: Any = vramkit.DataLoader(
        TensorDataset(rows),
        batch_size=2,
        num_workers=2 if path == "workers" else 0,
        worker_init_fn=(lambda _: None) if path == "workers" else None,
        staging_bytes=4 << 20,
    )
    with loader:
        kept = [batch for (batch,) in loader]
        assert loader.stats().path == path
        assert loader.stats().refused_batches == 0
        # Those of the batches that workers fetch ahead come on top of it.
        assert loader.stats().staging_bytes <= (4 << 20) + 6 * round_capacity(2 * 160_000)
        assert torch.equal(torch.cat(kept), rows)
        kept.clear()
        for _ in loader:
            pass
        assert loader.stats().staging_bytes <= 4 << 20
