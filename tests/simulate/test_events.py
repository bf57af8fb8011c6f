import numpy as np
import pytest
from helpers.traces import Row, live_curve
from hypothesis import given
from hypothesis import strategies as st

from vramkit.errors import TraceError
from vramkit.simulate import Events
from vramkit.simulate._events import RecordedEvents, normalise

CODES = {"alloc": 0, "free_requested": 1, "free_completed": 2}


def recorded(rows: list[Row], standing: list[tuple[int, int, int]] | None = None) -> RecordedEvents:
    columns = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 3).T
    return RecordedEvents(
        action=np.array([CODES[row[0]] for row in rows], dtype=np.uint8),
        addr=columns[0],
        size=columns[1],
        stream=columns[2],
        index=np.arange(len(rows)),
        standing=np.array(standing or [], dtype=np.int64).reshape(-1, 3),
    )


def described(events: Events) -> list[tuple[str, int, int, int]]:
    """Each event as (a or f, block, size, stream)."""
    columns = (events.op, events.block_id, events.size_bytes, events.stream)
    return [
        ("af"[op], block, size, stream)
        for op, block, size, stream in zip(*(c.tolist() for c in columns), strict=True)
    ]


def test_a_block_lives_from_alloc_to_free_completed() -> None:
    events = normalise(
        recorded(
            [
                ("alloc", 64, 10, 3),
                ("free_requested", 64, 10, 3),
                ("alloc", 96, 20, 9),
                ("free_completed", 64, 10, 3),
                ("alloc", 64, 30, 3),
            ]
        )
    )
    assert described(events) == [
        ("a", 0, 10, 0),
        ("a", 1, 20, 1),
        ("f", 0, 10, 0),
        ("a", 2, 30, 0),
    ]
    assert events.index.tolist() == [0, 2, 3, 4]
    assert events.peak_live_bytes == 50


def test_a_block_freed_without_allocation_is_placed_first() -> None:
    events = normalise(
        recorded([("alloc", 64, 10, 0), ("free_requested", 32, 7, 4), ("free_completed", 32, 7, 4)])
    )
    assert described(events) == [("a", 0, 7, 1), ("a", 1, 10, 0), ("f", 0, 7, 1)]
    assert events.index.tolist() == [-1, 0, 2]
    assert events.standing_blocks == 1


def test_a_block_whose_free_was_only_requested_stays_live() -> None:
    events = normalise(recorded([("alloc", 64, 10, 0), ("free_requested", 64, 10, 0)]))
    assert described(events) == [("a", 0, 10, 0)]
    older = normalise(recorded([("free_requested", 32, 7, 0), ("alloc", 64, 10, 0)]))
    assert described(older) == [("a", 0, 7, 0), ("a", 1, 10, 0)]


def test_standing_blocks_count_unless_an_event_names_them() -> None:
    events = normalise(recorded([("alloc", 64, 10, 0)], standing=[(64, 10, 0), (128, 99, 0)]))
    assert described(events) == [("a", 0, 99, 0), ("a", 1, 10, 0)]
    assert events.standing_blocks == 1


def test_blocks_of_zero_bytes_are_left_out() -> None:
    events = normalise(
        recorded(
            [
                ("alloc", 0, 0, 0),
                ("alloc", 0, 0, 0),
                ("alloc", 64, 0, 0),
                ("alloc", 96, 5, 0),
                ("free_completed", 64, 0, 0),
                ("free_completed", 0, 0, 0),
            ]
        )
    )
    assert described(events) == [("a", 0, 5, 0)]
    assert events.block_count == 1


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            [("alloc", 64, 1, 0), ("alloc", 96, 1, 0), ("alloc", 64, 2, 0)],
            r"event 2: address 0x40 is allocated again .* \(its previous event is 0\).*record it",
        ),
        (
            [("alloc", 64, 1, 0), ("free_completed", 64, 1, 0), ("free_completed", 64, 1, 0)],
            "event 2: address 0x40 is freed a second time",
        ),
        ([("alloc", 64, -5, 0)], "event 0: its size is -5 bytes; sizes cannot be negative"),
        ([("alloc", 64, 1 << 62, 0), ("alloc", 96, 1 << 62, 0)], "add up to 9.22e"),
    ],
)
def test_contradictions_are_refused(rows: list[Row], text: str) -> None:
    with pytest.raises(TraceError, match=text):
        normalise(recorded(rows))


def test_the_earliest_contradiction_is_named() -> None:
    rows: list[Row] = [("alloc", addr, 1, 0) for addr in (96, 64, 64, 96, 32, 32)]
    with pytest.raises(TraceError, match="event 2: address 0x40"):
        normalise(recorded(rows))


def test_streams_are_limited() -> None:
    assert (
        normalise(recorded([("alloc", 64 * n, 1, n) for n in range(1, 1025)])).block_count == 1024
    )
    with pytest.raises(TraceError, match="of 1,025 streams, more than the 1,024 admitted; record"):
        normalise(recorded([("alloc", 64 * n, 1, n) for n in range(1, 1026)]))
    standing = [(128 * n, 1, n) for n in range(1, 1025)]
    with pytest.raises(TraceError, match="of 1,025 streams"):
        normalise(recorded([("alloc", 64, 1, 0)], standing=standing))


def test_no_events_make_no_blocks() -> None:
    events = normalise(recorded([]))
    assert (len(events), events.block_count, events.peak_live_bytes) == (0, 0, 0)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Row], list[int]]:
    """Rows of a possible recording, and its live bytes after each alloc and free_completed."""
    unseen = {-64 * n: draw(st.integers(0, 999)) for n in range(1, draw(st.integers(1, 4)))}
    live = {addr: (size, 0) for addr, size in unseen.items()}
    unused = iter(range(64, 1 << 40, 64))
    free: list[int] = []
    rows: list[Row] = []
    total = sum(size for size, _ in live.values())
    changes: list[int] = []
    for _ in range(draw(st.integers(0, 30))):
        if live and draw(st.booleans()):
            addr = draw(st.sampled_from(sorted(live)))
            size, stream = live.pop(addr)
            unseen.pop(addr, None)
            rows += [("free_requested", addr, size, stream)] * draw(st.integers(0, 1))
            rows.append(("free_completed", addr, size, stream))
            free.append(addr)
            total -= size
        else:
            addr = free.pop() if free and draw(st.booleans()) else next(unused)
            live[addr] = size, stream = draw(st.integers(0, 999)), draw(st.integers(-2, 2))
            rows.append(("alloc", addr, size, stream))
            total += size
        changes.append(total)
    # Blocks that stood before and are never freed show in no event.
    return rows, [value - sum(unseen.values()) for value in changes]


@given(histories())
def test_the_live_bytes_are_those_of_a_dictionary(history: tuple[list[Row], list[int]]) -> None:
    rows, expected = history
    events = normalise(recorded(rows))
    curve = live_curve(events)
    assert events.live_bytes.tolist() == curve
    # An event of a block of zero bytes is left out; its live bytes repeat those before it.
    kept = [value for value, row in zip(expected, completions(rows), strict=True) if row[2] > 0]
    assert curve[sum(events.index < 0) :] == kept


def completions(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row[0] != "free_requested"]
