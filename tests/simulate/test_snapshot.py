import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from helpers.traces import Call, Row, snapshot_of, write_npz, write_snapshot

from vramkit.errors import TraceError
from vramkit.simulate import Events, load_trace

STREAM = 0x5581_0000_0000
ROWS: list[Row] = [
    ("segment_alloc", 0x7F00_0000_0000, 2 << 20, 0),
    ("alloc", 0x7F00_0000_0000, 100, 0),
    ("alloc", 0x7F00_0000_0200, 50, STREAM),
    ("free_requested", 0x7F00_0000_0000, 100, 0),
    ("free_completed", 0x7F00_0000_0000, 100, 0),
    ("free_requested", 0x7F00_0000_0200, 50, STREAM),
]


def columns(events: Events) -> list[list[int]]:
    names = ("op", "block_id", "size_bytes", "stream", "index")
    return [getattr(events, name).tolist() for name in names]


def test_a_snapshot_replays_like_the_same_npz_trace(tmp_path: Path) -> None:
    from_snapshot = load_trace(write_snapshot(tmp_path / "t.pickle", ROWS))
    from_npz = load_trace(write_npz(tmp_path / "t.npz", [(*row[:3], row[3] % 97) for row in ROWS]))
    assert columns(from_snapshot) == columns(from_npz)
    assert from_snapshot.index.tolist() == [1, 2, 4]


def test_the_content_decides_what_a_file_is(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "t.npz", ROWS)
    assert load_trace(path).block_count == 2


def test_out_of_memory_entries_need_no_address(tmp_path: Path) -> None:
    snapshot = snapshot_of(ROWS)
    snapshot["device_traces"][0].append({"action": "oom", "device_free": 1, "size": 2, "stream": 0})
    path = tmp_path / "t.pickle"
    path.write_bytes(pickle.dumps(snapshot))
    assert load_trace(path).block_count == 2


def test_the_only_device_with_events_is_taken(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "t.pickle", [], ROWS, [("snapshot", 0, 0, 0)])
    assert load_trace(path).block_count == 2
    assert load_trace(path, device=1).block_count == 2


def test_of_several_devices_one_is_chosen(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "t.pickle", ROWS, [], ROWS[:2])
    with pytest.raises(TraceError, match=r"0 \(5 events\), 2 \(1 event\); choose one by --device"):
        load_trace(path)
    assert load_trace(path, device=0).block_count == 2
    assert load_trace(path, device=2).block_count == 1
    with pytest.raises(TraceError, match="holds no events of device 1, but of 0"):
        load_trace(path, device=1)


def test_an_npz_trace_has_device_0_only(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "t.npz", ROWS[:2])
    assert load_trace(path, device=0).block_count == 1
    with pytest.raises(TraceError, match="holds one device, number 0, not 3"):
        load_trace(path, device=3)


def segment(**replaced: Any) -> dict[str, Any]:
    blocks = [
        {"address": 1 << 30, "size": 1024, "requested_size": 1000, "state": "active_allocated"},
        {"address": (1 << 30) + 1024, "size": 512, "requested_size": 0, "state": "inactive"},
        {
            "address": (1 << 30) + 1536,
            "size": 512,
            "requested_size": 300,
            "state": "active_pending_free",
        },
    ]
    return {"device": 0, "address": 1 << 30, "stream": 0, "blocks": blocks, **replaced}


def test_blocks_older_than_the_recording_are_placed_first(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "t.pickle", ROWS, segments=[segment(), segment(device=1)])
    events = load_trace(path)
    assert events.size_bytes.tolist() == [1000, 300, 100, 50, 100]
    assert events.index.tolist() == [-1, -1, 1, 2, 4]
    assert events.standing_blocks == 2
    assert events.peak_live_bytes == 1450


def test_blocks_that_events_name_count_once(tmp_path: Path) -> None:
    blocks = [{"address": ROWS[2][1], "size": 512, "requested_size": 50, "state": "active_a"}]
    path = write_snapshot(tmp_path / "t.pickle", ROWS, segments=[segment(blocks=blocks)])
    assert load_trace(path).standing_blocks == 0


def test_older_versions_give_neither_block_addresses_nor_requested_sizes(tmp_path: Path) -> None:
    blocks = [{"size": 512, "state": "inactive"}, {"size": 1024, "state": "active_allocated"}]
    rows: list[Row] = [("alloc", (1 << 30) + 512, 1024, 0)]
    path = write_snapshot(tmp_path / "t.pickle", rows, segments=[segment(blocks=blocks)])
    assert load_trace(path).standing_blocks == 0
    path = write_snapshot(tmp_path / "t.pickle", ROWS, segments=[segment(blocks=blocks)])
    assert load_trace(path).size_bytes.tolist()[0] == 1024


BLOCK = {"size": 1024, "requested_size": 1000, "state": "active_allocated"}
ENTRY = {"action": "alloc", "addr": 1 << 40, "size": 4, "stream": 0}
TRACE = [ENTRY]


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        ([1, 2], "no PyTorch memory snapshot: it is not a dict with 'device_traces'"),
        ({"segments": []}, "no PyTorch memory snapshot.*_record_memory_history"),
        ({"device_traces": 3}, "the snapshot has no list 'device_traces'"),
        ({"device_traces": []}, "holds no allocator events: call .*_record_memory_history"),
        ({"device_traces": [[], []]}, "holds no allocator events"),
        ({"device_traces": [{}]}, r"device_traces\[0\] is a dict, not a list"),
        ({"device_traces": [["x"]]}, "event 0 of device 0 is not a dict with an 'action'"),
        ({"device_traces": [[{"action": 3}]]}, "event 0 of device 0 is not a dict"),
        (
            {"device_traces": [[{"action": "alloc", "size": 4, "stream": 0}]]},
            "event 0 of device 0 has no int 'addr'",
        ),
        (
            {"device_traces": [[{"action": "alloc", "addr": 1.5, "size": 4, "stream": 0}]]},
            "event 0 of device 0 has no int 'addr'",
        ),
        (
            {"device_traces": [[{"action": "alloc", "addr": 1 << 70, "size": 4, "stream": 0}]]},
            "addr 0x400000000000000000 does not fit in 64 bits",
        ),
        (
            {"device_traces": [[{"action": "alloc", "addr": 1, "size": -4, "stream": 0}]]},
            "event 0 of device 0: size -4 is no possible number of bytes",
        ),
        (
            {"device_traces": [[{"action": "alloc", "addr": 1, "size": 1 << 600, "stream": 0}]]},
            "size of 601 bits is no possible number",
        ),
        (
            {**snapshot_of(ROWS[:1]), "device_traces": [[{**ENTRY, "pool_id": [1, 2]}]]},
            "event 0 of device 0: pool_id is no pair of integers",
        ),
        ({**snapshot_of(ROWS), "segments": 1}, "'segments' is not a list"),
        ({**snapshot_of(ROWS), "segments": [segment(device="0")]}, "segment 0 has no int 'device'"),
        ({**snapshot_of(ROWS), "segments": [segment()] * 2}, "one and the same list, several"),
        ({**snapshot_of(ROWS), "segments": [segment(), segment()]}, "two live blocks at address"),
        (
            {**snapshot_of(ROWS), "segments": [segment(address=(1 << 64) - 1, blocks=[BLOCK])]},
            "a block of segment 0 ends beyond the addresses of 64 bits",
        ),
        ({"device_traces": [TRACE, TRACE]}, "the traces of devices are one and the"),
        ({**snapshot_of(ROWS), "segments": [1]}, "segment 0 is a int, not a dict"),
        ({**snapshot_of(ROWS), "segments": [segment(blocks=1)]}, "segment 0 has no list 'blocks'"),
        ({**snapshot_of(ROWS), "segments": [segment(blocks=[1])]}, "a block of segment 0 is not"),
    ],
)
def test_pickles_that_are_no_snapshot_are_refused(
    tmp_path: Path, snapshot: object, text: str
) -> None:
    path = tmp_path / "t.pickle"
    path.write_bytes(pickle.dumps(snapshot))
    with pytest.raises(TraceError, match=text):
        load_trace(path)


def test_a_hostile_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.pickle"
    path.write_bytes(pickle.dumps({"device_traces": [[Call(os.system, "touch seen")]]}))
    with pytest.raises(TraceError, match=r"the pickle is refused: byte \d+: instruction .*GLOBAL"):
        load_trace(path)
    assert not (tmp_path / "seen").exists()


def test_addresses_above_the_signed_range_are_identities(tmp_path: Path) -> None:
    rows: list[Row] = [(action, (1 << 64) - 512, 9, 0) for action in ("alloc", "free_completed")]
    assert load_trace(write_snapshot(tmp_path / "t.pickle", rows)).op.tolist() == [0, 1]


def test_too_many_events_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vramkit.simulate._snapshot.MAX_EVENTS", 5)
    with pytest.raises(TraceError, match="device 0 has 6 events, more than the 5 admitted; record"):
        load_trace(write_snapshot(tmp_path / "t.pickle", ROWS))
