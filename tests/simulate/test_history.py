"""Histories that are not complete: what is taken for what, and what is said about it."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from helpers.traces import Row, snapshot_of, write_npz

from vramkit.cli import main
from vramkit.errors import TraceError
from vramkit.simulate import Events, load_trace

MIB = 1 << 20
BASE = 0x7F00_0000_0000
GRAPHS = (3, 0)


def steps(count: int, *, skipped: str = "", distinct: bool = False) -> list[Row]:
    """Events of a loop that has two blocks of 3 MiB live at once, at two addresses or at new ones.

    Args:
        skipped: The action that ``skip_actions`` leaves out.
        distinct: No address is used twice.
    """
    rows: list[Row] = []
    for number in range(count):
        first = BASE + (8 * MIB * number if distinct else 0)
        for action in ("alloc", "free_requested", "free_completed"):
            rows += [(action, addr, 3 * MIB, 0) for addr in (first, first + 4 * MIB)]
    return [row for row in rows if row[0] != skipped]


def segment(live_mib: int, *, address: int = BASE, **replaced: Any) -> dict[str, Any]:
    """A segment of 8 MiB that begins with a live block."""
    live = {"size": live_mib * MIB, "requested_size": live_mib * MIB, "state": "active_allocated"}
    rest = {"size": (8 - live_mib) * MIB, "requested_size": 0, "state": "inactive"}
    blocks = [live, rest] if live_mib else [rest]
    return {"device": 0, "address": address, "stream": 0, "blocks": blocks, **replaced}


def load(path: Path, snapshot: dict[str, Any]) -> Events:
    path.write_bytes(pickle.dumps(snapshot))
    return load_trace(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "t.pickle"


def test_a_complete_history_has_no_notes(file: Path) -> None:
    events = load(file, snapshot_of(steps(5), segments=[segment(0)]))
    assert events.notes == ()
    assert (events.peak_live_bytes, events.private_blocks) == (6 * MIB, 0)


@pytest.mark.parametrize("distinct", [False, True])
def test_without_completions_requests_are_taken(file: Path, distinct: bool) -> None:
    rows = steps(40, skipped="free_completed", distinct=distinct)
    events = load(file, snapshot_of(rows, segments=[segment(0)]))
    assert events.peak_live_bytes == 6 * MIB
    [note] = events.notes
    assert note.startswith("the history holds no 'free_completed' event: each block is taken for")
    assert note.endswith("record without skip_actions=['free_completed']")


def test_without_completions_the_command_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = steps(40, skipped="free_completed")
    path = write_npz(tmp_path / "t.npz", rows)
    assert main(["simulate", str(path), "--capacity", "8MiB"]) == 0
    printed = capsys.readouterr()
    assert "peak live           6.0 MiB\n" in printed.out
    assert "\n\nWarning: the history holds no 'free_completed' event: " in printed.out
    assert main(["simulate", str(path), "--json", "--capacity", "8MiB"]) == 0
    assert "the history holds no 'free_completed' event" in capsys.readouterr().out


def test_one_completion_shows_that_they_were_recorded(file: Path) -> None:
    rows = [*steps(1), *steps(1, skipped="free_completed")]
    events = load(file, snapshot_of(rows, segments=[segment(6)]))
    assert events.live_bytes.tolist()[-1] == 6 * MIB
    assert events.notes == ()


def test_requests_may_be_skipped(file: Path) -> None:
    events = load(file, snapshot_of(steps(9, skipped="free_requested"), segments=[segment(0)]))
    assert (events.peak_live_bytes, events.notes) == (6 * MIB, ())


def test_without_frees_the_segments_contradict(file: Path) -> None:
    rows = [row for row in steps(40, distinct=True) if row[0] == "alloc"]
    events = load(file, snapshot_of(rows, segments=[segment(0)]))
    assert events.peak_live_bytes == 240 * MIB
    [note] = events.notes
    assert note == (
        "the events leave 240.0 MiB live, but the snapshot's segments hold 0 B, so the peak of "
        "240.0 MiB is doubtful: events are missing; record all actions, from the start of the loop"
    )


def test_addresses_used_again_without_frees_are_an_error_with_a_hint(file: Path) -> None:
    rows = [row for row in steps(2) if row[0] == "alloc"]
    with pytest.raises(TraceError, match=r"allocated again .* and without skip_actions"):
        load(file, snapshot_of(rows, segments=[segment(0)]))


def test_a_peak_above_all_segments_is_doubtful(file: Path) -> None:
    rows = steps(40, distinct=True)
    allocs = [row for row in rows if row[0] == "alloc"]
    others = [row for row in rows if row[0] != "alloc"]
    events = load(file, snapshot_of([*allocs, *others], segments=[segment(0)]))
    [note] = events.notes
    assert note.startswith(
        "the peak of the events, 240.0 MiB, is doubtful: the snapshot's segments had at most "
        "8.0 MiB, so events are missing"
    )


def test_segments_that_were_there_before_count(file: Path) -> None:
    far = BASE + (1 << 40)
    rows: list[Row] = [
        ("segment_alloc", far, 30 * MIB, 0),
        ("alloc", far, 30 * MIB, 0),
        ("free_completed", far, 30 * MIB, 0),
        ("segment_free", far, 30 * MIB, 0),
        ("segment_unmap", BASE + 8 * MIB, 2 * MIB, 0),
        *steps(1),
    ]
    assert load(file, snapshot_of(rows, segments=[segment(0)])).notes == ()


def test_older_blocks_count_on_both_sides(file: Path) -> None:
    old = segment(7, address=BASE + (1 << 40))
    events = load(file, snapshot_of(steps(3), segments=[segment(0), old]))
    assert (events.notes, events.standing_blocks) == ((), 1)
    assert events.peak_live_bytes == 13 * MIB


def test_a_file_without_segments_is_not_judged(file: Path) -> None:
    snapshot = snapshot_of(steps(3)[:1])
    del snapshot["segments"]
    assert load(file, snapshot).notes == ()


def test_an_overflow_is_told(file: Path) -> None:
    snapshot = snapshot_of(steps(3), segments=[segment(0)], trace_alloc_overflowed=True)
    [note] = load(file, snapshot).notes
    assert note.startswith("the history overflowed while it was recorded, and its oldest events")
    assert "the peak of what is left, 6.0 MiB, may not be the highest" in note
    snapshot = snapshot_of(steps(3), segments=[segment(0)], trace_alloc_overflowed=False)
    assert load(file, snapshot).notes == ()


def of_pool(snapshot: dict[str, Any], pools: list[Any]) -> dict[str, Any]:
    for entry, pool in zip(snapshot["device_traces"][0], pools, strict=True):
        entry["pool_id"] = pool
    return snapshot


def test_private_pools_are_counted_apart(file: Path) -> None:
    # The second pool has an address that the first had before.
    rows = [*steps(2), *steps(1)[:1]]
    pools = [(0, 0)] * 6 + [GRAPHS] * 7
    graph = segment(3, segment_pool_id=GRAPHS)
    shared = segment(0, address=BASE + (1 << 40))
    events = load(file, of_pool(snapshot_of(rows, segments=[graph, shared]), pools))
    assert (events.block_count, events.peak_live_bytes) == (2, 6 * MIB)
    assert (events.private_blocks, events.private_peak_bytes) == (3, 6 * MIB)
    assert (events.standing_blocks, events.notes) == (0, ())


def test_entries_without_a_pool_are_of_the_segment_around_them(file: Path) -> None:
    far = BASE + (1 << 40)
    rows: list[Row] = [*steps(1), ("alloc", far + 5 * MIB, MIB, 0)]
    graph = segment(2, address=far, segment_pool_id=GRAPHS)
    graph["blocks"].insert(1, {"size": 3 * MIB, "state": "inactive"})
    graph["blocks"][2:] = [{"size": MIB, "state": "active_allocated"}]
    events = load(file, snapshot_of(rows, segments=[segment(0), graph]))
    assert (events.block_count, events.peak_live_bytes) == (2, 6 * MIB)
    # One of an event, one from before.
    assert (events.private_blocks, events.private_peak_bytes) == (2, 3 * MIB)
    assert events.notes == ()


def test_private_events_that_do_not_fit_are_not_counted(file: Path) -> None:
    rows = [*steps(1), *steps(1)[:1], *steps(1)[:1]]
    snapshot = of_pool(snapshot_of(rows, segments=[segment(0)]), [(0, 0)] * 6 + [GRAPHS] * 2)
    events = load(file, snapshot)
    assert (events.private_blocks, events.peak_live_bytes) == (0, 6 * MIB)
    [note] = events.notes
    assert note.startswith("the events of private pools are not counted, they do not fit: event 7")


def test_nothing_but_private_pools_is_no_trace(file: Path) -> None:
    snapshot = of_pool(snapshot_of(steps(1), segments=[segment(0)]), [GRAPHS] * 6)
    with pytest.raises(TraceError, match="all 2 blocks are in private pools, of CUDA graphs or"):
        load(file, snapshot)


def test_pools_of_no_number_are_the_shared_one(file: Path) -> None:
    snapshot = of_pool(snapshot_of(steps(1), segments=[segment(0)]), [None, (0, 0)] * 3)
    assert load(file, snapshot).private_blocks == 0
