import gc
import time

import numpy as np
import pytest
from helpers.traces import events_of
from hypothesis import given
from hypothesis import strategies as st

from vramkit._core import CorePool
from vramkit.errors import CapacityError, InvalidArgumentError
from vramkit.simulate import Events, replay

MIB = 1 << 20
PAGE = 2 * MIB


def test_a_replay_that_fits_completes() -> None:
    outcome = replay(
        events_of([0, 1, 0, 2], sizes=[4 * MIB, 6 * MIB, 4 * MIB]), capacity_bytes=10 * MIB
    )
    assert outcome.failure is None
    assert outcome.events == 4
    assert (outcome.capacity_bytes, outcome.page_bytes) == (10 * MIB, PAGE)
    assert outcome.seconds > 0
    assert outcome.metadata_bytes > 0


def test_a_replay_that_does_not_fit_says_where_and_why() -> None:
    # 3 MiB in each of the four pairs of pages: no page is wholly free.
    events = events_of(
        [0, 1, 2, 3, 4, 5, 1, 3, 6],
        sizes=[3 * MIB, 1 * MIB, 3 * MIB, 1 * MIB, 3 * MIB, 1 * MIB, 2 * MIB],
    )
    outcome = replay(events, capacity_bytes=12 * MIB)
    failure = outcome.failure
    assert failure is not None
    assert outcome.events == failure.replayed_events == failure.event == 8
    assert failure.requested_bytes == 2 * MIB
    assert failure.stream == 0
    assert failure.live_bytes == 10 * MIB
    assert failure.free_bytes == 2 * MIB
    assert failure.largest_hole_bytes == 1 * MIB
    assert failure.free_whole_pages == 0
    assert failure.round is None


def test_the_failing_event_is_named_by_its_place_in_the_file() -> None:
    events = events_of([0, 1], sizes=[4 * MIB, 4 * MIB])
    events.index[:] = [10, 17]
    failure = replay(events, capacity_bytes=6 * MIB).failure
    assert failure is not None
    assert (failure.event, failure.replayed_events) == (17, 1)


def test_free_pages_are_stitched_and_stitches_reused() -> None:
    # Two holes of 4 MiB, then twice a block of 8 MiB.
    events = events_of(
        [0, 1, 2, 3, 0, 2, 4, 4, 5, 5], sizes=[4 * MIB, 2 * MIB, 4 * MIB, 2 * MIB, 8 * MIB, 8 * MIB]
    )
    outcome = replay(events, capacity_bytes=12 * MIB, round_starts=(6, 8))
    assert outcome.failure is None
    assert (outcome.stitched_requests, outcome.stitched_pages, outcome.alias_hits) == (1, 4, 1)
    first, second = outcome.rounds
    assert (first.stitched_requests, first.stitched_pages, first.alias_hits) == (1, 4, 0)
    assert (second.stitched_requests, second.stitched_pages, second.alias_hits) == (0, 0, 1)
    assert first.mapping_calls > 0
    assert second.mapping_calls == 0


def test_a_failure_in_a_round_names_the_round() -> None:
    events = events_of([0, 1, 1, 2, 3], sizes=[4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB])
    for starts, expected in (((1, 3), 2), ((1, 4), 2), ((1,), 1), ((4,), 1)):
        failure = replay(events, capacity_bytes=8 * MIB, round_starts=starts).failure
        assert failure is not None
        assert failure.round == expected
    failure = replay(events, capacity_bytes=4 * MIB, round_starts=(2,)).failure
    assert failure is not None
    assert failure.round == 0


def test_memory_of_one_stream_serves_another_after_a_wait() -> None:
    events = events_of([0, 0, 1, 1], sizes=[8 * MIB, 8 * MIB])
    events.stream[2:] = 1
    outcome = replay(events, capacity_bytes=8 * MIB)
    assert outcome.failure is None
    assert outcome.cross_stream_waits == 1


def test_progress_is_told_chunk_by_chunk() -> None:
    events = events_of([n // 2 for n in range(140_000)], sizes=[512] * 70_000)
    told: list[tuple[int, int]] = []
    replay(events, capacity_bytes=PAGE, progress=lambda done, total: told.append((done, total)))
    assert told == [(65_536, 140_000), (131_072, 140_000), (140_000, 140_000)]


@pytest.mark.parametrize(
    ("capacity", "page", "text"), [(PAGE, 3 << 20, "page"), (MIB, PAGE, "capacity")]
)
def test_the_pool_s_own_checks_come_through(capacity: int, page: int, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        replay(events_of([0, 0], sizes=[512]), capacity_bytes=capacity, page_bytes=page)


@pytest.mark.parametrize("capacity_bytes", [6 * MIB, 12 * MIB])
def test_the_pool_is_closed_after_the_replay(
    capacity_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[CorePool] = []
    create = CorePool.create

    def recorded(**options: object) -> CorePool:
        pools.append(create(**options))  # type: ignore[arg-type]
        return pools[-1]

    monkeypatch.setattr(CorePool, "create", recorded)
    replay(
        events_of([0, 1, 2, 1], sizes=[4 * MIB, 2 * MIB, 4 * MIB]), capacity_bytes=capacity_bytes
    )
    gc.collect()
    with pytest.raises(Exception, match="closed"):
        pools[0].alloc(512)


@st.composite
def small_events(draw: st.DrawFn) -> Events:
    blocks: list[int] = []
    live: list[int] = []
    sizes: list[int] = []
    for _ in range(draw(st.integers(1, 60))):
        if live and draw(st.booleans()):
            blocks.append(live.pop(draw(st.integers(0, len(live) - 1))))
        else:
            live.append(len(sizes))
            blocks.append(len(sizes))
            sizes.append(draw(st.integers(1, 5 * MIB)))
    events = events_of(blocks, sizes=sizes)
    events.stream[:] = np.array([block % 3 for block in blocks], dtype=np.int32)
    return events


@given(small_events(), st.integers(1, 20))
def test_any_events_complete_or_fail_where_live_bytes_say(events: Events, pages: int) -> None:
    outcome = replay(events, capacity_bytes=pages * PAGE)
    if outcome.failure is None:
        assert outcome.events == len(events)
        assert events.peak_live_bytes <= pages * PAGE
    else:
        at = outcome.events
        assert events.op[at] == 0
        before = int(events.live_bytes[at - 1]) if at else 0
        assert outcome.failure.live_bytes == before
        assert outcome.failure.free_whole_pages * PAGE < outcome.failure.requested_bytes
        assert outcome.failure.largest_hole_bytes < outcome.failure.requested_bytes


def test_a_block_that_two_streams_pass_on_takes_linear_time() -> None:
    # Each allocation waits for the other stream, and no event of this backend is ever known to be
    # done. A search through all events took 24 s.
    count = 400_000
    events = Events(
        op=np.tile(np.array([0, 1], dtype=np.uint8), count),
        block_id=np.repeat(np.arange(count), 2),
        size_bytes=np.full(2 * count, PAGE),
        stream=np.repeat(np.arange(count, dtype=np.int32) % 2, 2),
        index=np.arange(2 * count),
        block_count=count,
        standing_blocks=0,
    )
    begin = time.process_time()
    assert replay(events, capacity_bytes=PAGE).cross_stream_waits == count - 1
    assert time.process_time() - begin < 6


@pytest.mark.parametrize("capacity", [0, -PAGE, 1 << 63, 18446744073713745920, 1 << 200])
def test_capacities_that_would_wrap_are_refused(capacity: int) -> None:
    with pytest.raises(CapacityError, match=r"the capacity must be 1 to 9,223,372,.*such as 80GiB"):
        replay(events_of([0], sizes=[8]), capacity_bytes=capacity)


@pytest.mark.parametrize("page", [0, -PAGE, 1 << 63, (1 << 64) + PAGE, 1 << 200])
def test_pages_that_would_wrap_are_refused(page: int) -> None:
    with pytest.raises(InvalidArgumentError, match="page_bytes must be a power of two of at least"):
        replay(events_of([0], sizes=[8]), capacity_bytes=PAGE, page_bytes=page)
