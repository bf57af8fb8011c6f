"""A full pool and Python's garbage collector."""

import gc
import re
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from helpers.pools import MIB, is_in, is_native, run_script

from vramkit import MemoryPool


@pytest.fixture(autouse=True)
def _no_collection_but_ours() -> Iterator[None]:
    """Only full collections count: cycles that are met here were there at the last one."""
    gc.collect()
    before = gc.get_threshold()
    gc.set_threshold(10**9)
    yield
    gc.set_threshold(*before)


class _Cycle:
    def __init__(self, size_bytes: int) -> None:
        self.own = self
        self.tensor = torch.empty(size_bytes, dtype=torch.uint8)


def _full(pool: MemoryPool, cycle_bytes: int) -> None:
    with pool:
        _Cycle(cycle_bytes)


def _make(pool: MemoryPool, size_bytes: int) -> torch.Tensor:
    with pool:
        return torch.empty(size_bytes, dtype=torch.uint8)


@pytest.fixture
def small() -> MemoryPool:
    return MemoryPool("64MiB", device="cpu")


def test_what_cycles_hold_is_had_again(small: MemoryPool) -> None:
    _full(small, 62 * MIB)
    made = _make(small, 40 * MIB)
    assert made.nbytes == 40 * MIB
    assert small.stats().failures == 0
    assert small.stats().live_blocks == 1


def test_the_error_tells_what_a_collection_brought(small: MemoryPool) -> None:
    kept = _make(small, 40 * MIB)
    _full(small, 12 * MIB)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        _make(small, 30 * MIB)
    told = r"A garbage collection before this freed 12(\.0+)? MiB in 1 tensor; it was not enough\."
    assert re.search(told, str(caught.value))
    assert small.stats().failures == 1
    assert kept.nbytes == 40 * MIB


def test_a_collection_that_frees_nothing_is_not_repeated_at_once(small: MemoryPool) -> None:
    kept = _make(small, 40 * MIB)
    ran: list[str] = []
    gc.callbacks.append(lambda phase, _info: ran.append(phase))
    try:
        for _ in range(3):
            with pytest.raises(torch.OutOfMemoryError) as caught:
                _make(small, 30 * MIB)
            assert "garbage" not in str(caught.value)
    finally:
        gc.callbacks.pop()
    assert ran == ["start", "stop"]
    assert kept.nbytes == 40 * MIB


def test_no_collection_where_python_s_is_switched_off(small: MemoryPool) -> None:
    _full(small, 62 * MIB)
    gc.disable()
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            _make(small, 40 * MIB)
    finally:
        gc.enable()
    assert "garbage" not in str(caught.value)


def test_no_collection_where_it_cannot_help(small: MemoryPool) -> None:
    ran: list[str] = []
    gc.callbacks.append(lambda phase, _info: ran.append(phase))
    try:
        for size in (40 * MIB, 100 * MIB):
            made = _make(small, 40 * MIB)
            with pytest.raises(torch.OutOfMemoryError):
                _make(small, size + 60 * MIB)
            del made
    finally:
        gc.callbacks.pop()
    assert ran == []


def test_no_collection_for_an_overflow_that_is_no_error() -> None:
    pool = MemoryPool("64MiB", device="cpu", overflow="native")
    _full(pool, 62 * MIB)
    with pytest.warns(UserWarning, match="has no room"):
        made = _make(pool, 40 * MIB)
    assert pool.stats().overflow_allocations == 1
    assert made.nbytes == 40 * MIB
    gc.collect()


def test_no_collection_during_a_graph_capture(small: MemoryPool) -> None:
    from vramkit._core._library import call

    _full(small, 62 * MIB)
    call("vramkit_capture_begin", 3, 5)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            _make(small, 40 * MIB)
    finally:
        call("vramkit_capture_end", 3, 5)
    assert "garbage" not in str(caught.value)
    assert _make(small, 40 * MIB).nbytes == 40 * MIB


class _Finalized(_Cycle):
    """Allocates more than there is when it is collected."""

    seen: ClassVar[list[str]] = []

    def __del__(self) -> None:
        try:
            torch.empty(60 * MIB, dtype=torch.uint8)
        except torch.OutOfMemoryError as err:
            self.seen.append(str(err))


def test_a_finalizer_that_allocates_does_not_collect_again(small: MemoryPool) -> None:
    _Finalized.seen.clear()
    with small:
        _Finalized(40 * MIB)
    assert _make(small, 40 * MIB).nbytes == 40 * MIB
    [text] = _Finalized.seen
    assert "garbage" not in text


def test_threads_that_meet_a_full_pool_together(small: MemoryPool) -> None:
    start = threading.Barrier(4)
    outcomes: list[bool] = []

    def work() -> None:
        start.wait()
        try:
            made = torch.empty(14 * MIB, dtype=torch.uint8)
        except torch.OutOfMemoryError:
            outcomes.append(False)
        else:
            outcomes.append(made.nbytes == 14 * MIB)

    with small:
        _Cycle(62 * MIB)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # One of them collects; the others may have been refused before it was done.
    assert any(outcomes)
    gc.collect()
    small._core.check()


class _Owner(_Cycle):
    """Garbage that owns the active pool and a tensor of it."""

    def __init__(self, size_bytes: int) -> None:
        self.pool = MemoryPool("64MiB", device="cpu")
        self.pool.activate()
        super().__init__(size_bytes)


def test_a_collection_may_end_the_pool_that_serves() -> None:
    _Owner(40 * MIB)
    assert is_native(torch.empty(40 * MIB, dtype=torch.uint8))


def test_after_the_end_of_its_pool_a_request_goes_to_the_scope_around_it(small: MemoryPool) -> None:
    with small:
        _Owner(40 * MIB)
        assert is_in(small, torch.empty(40 * MIB, dtype=torch.uint8))


def test_a_pool_whose_owner_is_gone_serves_no_more_though_it_has_blocks(small: MemoryPool) -> None:
    with small:
        owner = _Owner(40 * MIB)
        kept = torch.ones(MIB)
        del owner
        made = torch.empty(40 * MIB, dtype=torch.uint8)
        assert is_in(small, made)
    assert kept.sum() == MIB
    assert small.stats().failures == 0


def test_the_exception_that_is_handled_stays() -> None:
    run_script(
        """
        import torch, vramkit
        class Cycle:
            def __init__(self):
                self.own, self.tensor = self, torch.empty(62 << 20, dtype=torch.uint8)
        pool = vramkit.MemoryPool("64MiB", device="cpu")
        with pool:
            Cycle()
            try:
                raise KeyError("mine")
            except KeyError as err:
                made = torch.empty(40 << 20, dtype=torch.uint8)
                assert err.args == ("mine",)
        """
    )
