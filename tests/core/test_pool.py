"""The core through its C interface: wrong use, and random operations against a plain dictionary."""

import ctypes
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vramkit import errors
from vramkit._core import BlockKind, BlockState, CorePool, active_pool, close_scope, owner

MIB = 1 << 20
PAGE = 64 << 10
GRANULE = 16 << 10
BACKENDS = ["host", "memfd", "null", "host+late_events+faults", "memfd+late_events+faults"]


def _make(backend: str, capacity_bytes: int = 16 * MIB, page_bytes: int = PAGE) -> CorePool:
    return CorePool.create(
        backend=backend,
        label="test",
        capacity_bytes=capacity_bytes,
        page_bytes=page_bytes,
        debug_checks=True,
    )


@pytest.fixture(params=BACKENDS)
def pool(request: pytest.FixtureRequest) -> Iterator[CorePool]:
    made = _make(request.param)
    yield made
    made.release()


def test_a_foreign_pointer(pool: CorePool) -> None:
    memory = ctypes.create_string_buffer(64)
    uses = [
        pool.free,
        pool.find_block,
        lambda address: pool.free_on(address, 1),
        lambda address: pool.record_stream(address, 1),
    ]
    for use in uses:
        with pytest.raises(errors.ForeignPointerError, match="0x"):
            use(ctypes.addressof(memory))


def test_another_pool_s_pointer(pool: CorePool) -> None:
    other = _make("host")
    address = other.alloc(1000)
    with pytest.raises(errors.ForeignPointerError):
        pool.free(address)
    assert other.free(address) == 1000
    other.close()


@pytest.mark.parametrize("size", [100, PAGE * 3])
def test_a_double_free(pool: CorePool, size: int) -> None:
    keep, address = pool.alloc(size), pool.alloc(size)
    pool.free(address)
    with pytest.raises(errors.DoubleFreeError, match="0x"):
        pool.free(address)
    pool.free(keep)
    pool.check()


@pytest.mark.parametrize("size", [1000, PAGE * 3])
def test_a_free_of_the_middle_of_a_block(pool: CorePool, size: int) -> None:
    address = pool.alloc(size)
    with pytest.raises(errors.DoubleFreeError):
        pool.free(address + 512)
    assert pool.free(address) == size


@pytest.mark.parametrize("size", [2**62, 2**63, 2**64 - 1, 2**64 - 512])
def test_sizes_that_overflow(pool: CorePool, size: int) -> None:
    with pytest.raises((errors.PoolOutOfMemoryError, errors.InvalidArgumentError)):
        pool.alloc(size)
    pool.check()
    assert pool.stats()["live_blocks"] == 0


@pytest.mark.parametrize(
    ("capacity", "page", "backend"),
    [
        (0, PAGE, "host"),
        (PAGE - 1, PAGE, "host"),
        (MIB, 3 * PAGE, "host"),
        (MIB, 4096, "host"),
        (2**64 - 1, PAGE, "host"),
        (MIB, PAGE, "tape"),
        (MIB, PAGE, "host+magic"),
        (MIB, PAGE, ""),
    ],
)
def test_pools_that_cannot_be(capacity: int, page: int, backend: str) -> None:
    with pytest.raises((errors.InvalidArgumentError, errors.SystemCallError)) as caught:
        _make(backend, capacity, page)
    assert len(str(caught.value)) > 20


def test_use_after_close(pool: CorePool) -> None:
    address = pool.alloc(1000)
    with pytest.raises(errors.PoolBusyError, match=r"\b1\b"):
        pool.close()
    pool.free(address)
    pool.close()
    uses = [
        lambda: pool.alloc(100),
        lambda: pool.free(address),
        pool.stats,
        pool.snapshot,
        pool.trim,
        lambda: pool.resize(32 * MIB),
        pool.open_scope,
    ]
    for use in uses:
        with pytest.raises(errors.PoolClosedError):
            use()
    pool.close()
    assert owner(address) == 0


def test_release_waits_for_the_last_block(pool: CorePool) -> None:
    address = pool.alloc(1000)
    pool.release()
    assert owner(address) == pool.handle
    pool.free(address)
    with pytest.raises(errors.PoolClosedError):
        pool.stats()


def test_scopes_by_token(pool: CorePool) -> None:
    other = _make("host")
    first, second = pool.open_scope(), other.open_scope()
    assert active_pool() == other.handle
    close_scope(first)
    assert active_pool() == other.handle
    close_scope(second)
    assert active_pool() == 0
    with pytest.raises(errors.InvalidArgumentError):
        close_scope(second)
    other.close()


def test_blocks_are_found_from_inside(pool: CorePool) -> None:
    address = pool.alloc(5 * PAGE, stream=7, stack_id=42)
    block = pool.find_block(address + 4 * PAGE)
    assert (block.address, block.requested_bytes) == (address, 5 * PAGE)
    assert (block.stream, block.stack_id) == (7, 42)
    pool.free(address)


@pytest.mark.parametrize("backend", ["memfd+late_events+faults", "null+late_events"])
def test_another_stream_waits_for_the_events(backend: str) -> None:
    pool = _make(backend, 4 * MIB)
    address = pool.alloc(4 * MIB, stream=1)
    pool.free(address)
    again = pool.alloc(4 * MIB, stream=2)
    assert pool.stats()["cross_stream_waits"] > 0
    pool.free(again)
    pool.close()


@pytest.mark.parametrize("size", [1000, 3 * PAGE])
def test_a_free_on_a_stream_that_comes_later(pool: CorePool, size: int) -> None:
    address = pool.alloc(size, stream=1)
    assert pool.free_on(address, 2) == size
    with pytest.raises(errors.DoubleFreeError):
        pool.free_on(address, 2)
    pool.check()
    assert pool.stats()["live_blocks"] == 0


@pytest.mark.parametrize("size", [1000, 4 * MIB])
def test_memory_of_an_external_stream_comes_after_a_wait_for_the_device(size: int) -> None:
    pool = _make("memfd+late_events+faults", 4 * MIB)
    pool.declare_external_stream(1)
    pool.free(pool.alloc(size, stream=1))
    pool.fault("synchronize_all", 1)
    with pytest.raises(errors.SystemCallError, match="injected failure of synchronize_all"):
        pool.alloc(4 * MIB)
    pool.free(pool.alloc(4 * MIB))
    assert pool.stats()["cross_stream_waits"] == 0
    pool.close()


# ---- random operations against a dictionary

_SIZES = st.integers(9, 22).flatmap(lambda power: st.integers(1, 1 << power))


class _Model(RuleBasedStateMachine):
    """What must hold is known from the operations alone: address to size, stream and pattern."""

    backend = "host"

    @initialize()
    def make(self) -> None:
        self.pool = _make(self.backend, 8 * MIB)
        self.live: dict[int, tuple[int, int]] = {}
        self.count = 0

    @rule(size=_SIZES, stream=st.integers(0, 2))
    def allocate(self, size: int, stream: int) -> None:
        try:
            address = self.pool.alloc(size, stream=stream)
        except errors.PoolOutOfMemoryError:
            # Small blocks of one stream share a chunk; one that finds none takes a whole granule.
            needed = max(size, GRANULE)
            assert needed > self.pool.stats()["largest_free_bytes"]
            return
        assert address % 512 == 0
        for start, (other, _) in self.live.items():
            assert address + size <= start or start + other <= address
        self.count += 1
        pattern = self.count % 251 + 1
        if self.backend != "null":
            ctypes.memset(address, pattern, size)
        self.live[address] = (size, pattern)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), stream=st.none() | st.integers(0, 2))
    def free(self, data: st.DataObject, stream: int | None) -> None:
        address = data.draw(st.sampled_from(sorted(self.live)))
        size, pattern = self.live.pop(address)
        if self.backend != "null":
            assert ctypes.string_at(address, size) == bytes([pattern]) * size
        if stream is None:
            assert self.pool.free(address) == size
        else:
            assert self.pool.free_on(address, stream) == size

    @precondition(lambda self: self.live)
    @rule(data=st.data(), stream=st.integers(0, 2))
    def record(self, data: st.DataObject, stream: int) -> None:
        self.pool.record_stream(data.draw(st.sampled_from(sorted(self.live))), stream)

    @rule()
    def trim(self) -> None:
        before = self.pool.stats()["mapped_bytes"]
        assert self.pool.trim() == before - self.pool.stats()["mapped_bytes"]

    @rule(pages=st.integers(1, 192))
    def resize(self, pages: int) -> None:
        before = self.pool.stats()["capacity_bytes"]
        try:
            self.pool.resize(pages * PAGE)
        except errors.PoolBusyError:
            assert pages * PAGE < before
            assert self.pool.stats()["capacity_bytes"] == before
        else:
            assert self.pool.stats()["capacity_bytes"] == pages * PAGE

    @invariant()
    def counters_agree(self) -> None:
        stats = self.pool.stats()
        assert stats["live_blocks"] == len(self.live)
        assert stats["live_bytes"] == sum(size for size, _ in self.live.values())
        assert stats["free_bytes"] == stats["capacity_bytes"] - stats["allocated_bytes"]
        live = {
            block.address: block.requested_bytes
            for block in self.pool.snapshot()
            if block.state == BlockState.LIVE
        }
        assert live == {address: size for address, (size, _) in self.live.items()}

    def teardown(self) -> None:
        for address in list(self.live):
            self.pool.free(address)
        self.pool.check()
        self.pool.close()


@pytest.mark.parametrize("backend", ["host", "memfd", "null", "memfd+late_events"])
def test_random_operations_agree_with_a_dictionary(backend: str) -> None:
    machine = type("Model", (_Model,), {"backend": backend})
    test = machine.TestCase()
    test.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
    test.runTest()


def test_stitched_blocks_are_marked_and_used_again() -> None:
    pool = _make("memfd", 16 * PAGE)
    pages = [pool.alloc(PAGE) for _ in range(16)]
    for address in pages[::2]:
        pool.free(address)
    stitched = pool.alloc(8 * PAGE)
    assert pool.find_block(stitched).kind == BlockKind.STITCHED
    calls = pool.stats()["mapping_calls"]
    for _ in range(5):
        pool.free(stitched)
        assert pool.alloc(8 * PAGE) == stitched
    stats = pool.stats()
    assert stats["mapping_calls"] == calls
    assert (stats["stitched_requests"], stats["stitched_pages"], stats["alias_hits"]) == (1, 8, 5)
    pool.free(stitched)
    for address in pages[1::2]:
        pool.free(address)
    pool.close()
