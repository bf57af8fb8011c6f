import json
from typing import Any

from helpers.traces import events_of

from vramkit.simulate import (
    Failure,
    Repetition,
    Replay,
    RoundCounters,
    Simulation,
    Step,
    to_json,
    to_text,
)

GIB = 1 << 30

KEYS = [
    "completed",
    "events",
    "peak_live_bytes",
    "capacity_bytes",
    "ratio",
    "stitched_requests",
    "stitched_pages",
    "cross_stream_waits",
    "estimated_stitch_ms",
    "seconds",
    "failure",
    "private_pools",
    "warnings",
]

FAILURE = Failure(
    event=1234,
    replayed_events=1200,
    requested_bytes=6 << 20,
    stream=2,
    live_bytes=GIB - (5 << 20),
    free_bytes=5 << 20,
    largest_hole_bytes=3 << 20,
    free_whole_pages=2,
    round=None,
)


def simulation(**replaced: Any) -> Simulation:
    values: dict[str, Any] = {
        "failure": None,
        "events": 5_000_000,
        "capacity_bytes": GIB,
        "page_bytes": 2 << 20,
        "stitched_requests": 3,
        "stitched_pages": 2000,
        "cross_stream_waits": 17,
        "alias_hits": 0,
        "mapping_calls": 4,
        "metadata_bytes": 1000,
        "seconds": 2.0,
        "rounds": (),
    }
    values.update({key: value for key, value in replaced.items() if key in values})
    return Simulation(
        peak_live_bytes=GIB // 4 * 3,
        standing_blocks=replaced.get("standing_blocks", 0),
        replay=Replay(**values),
        repetition=replaced.get("repetition"),
        notes=replaced.get("notes", ()),
        private_blocks=replaced.get("private_blocks", 0),
        private_peak_bytes=3 << 20,
    )


def repeated(**replaced: Any) -> Simulation:
    repetition = Repetition(
        events=events_of([0, 0], sizes=[9]), step=Step(40, 90), round_starts=(40, 90)
    )
    rounds = (RoundCounters(7, 3, 2000, 0), RoundCounters(0, 0, 0, 3))
    return simulation(repetition=repetition, rounds=rounds, **replaced)


def test_the_json_report_has_just_the_promised_keys() -> None:
    report = json.loads(json.dumps(to_json(simulation())))
    assert list(report) == KEYS
    assert report["completed"] is True
    assert report["failure"] is None
    assert report["ratio"] == GIB / (GIB // 4 * 3)
    assert report["estimated_stitch_ms"] == 85.0


def test_the_json_report_of_a_failure() -> None:
    report = json.loads(json.dumps(to_json(simulation(failure=FAILURE))))
    assert list(report) == KEYS
    assert report["completed"] is False
    assert report["failure"]["event"] == 1234
    assert report["failure"]["largest_hole_bytes"] == 3 << 20
    assert report["failure"]["message"].startswith("The pool ran out at event 1,234")


def test_the_json_report_of_a_repeated_step() -> None:
    report = json.loads(json.dumps(to_json(repeated())))
    assert list(report) == [*KEYS, "step", "rounds"]
    assert report["step"] == {"first_event": 40, "end_event": 90}
    assert report["rounds"] == [
        {"mapping_calls": 7, "stitched_requests": 3, "stitched_pages": 2000, "alias_hits": 0},
        {"mapping_calls": 0, "stitched_requests": 0, "stitched_pages": 0, "alias_hits": 3},
    ]


def test_the_table() -> None:
    assert to_text(simulation(), title="t.npz").splitlines() == [
        "trace               t.npz",
        "result              completed",
        "events              5,000,000",
        "peak live           768.0 MiB",
        "capacity            1.0 GiB (512 pages of 2.0 MiB)",
        "ratio               1.3333 (capacity / peak live)",
        "stitched requests   3",
        "stitched pages      2,000 (about 85.0 ms on an H100)",
        "cross-stream waits  17",
        "speed               2.5 M events/s (2.000 s)",
    ]


def test_the_table_names_older_blocks() -> None:
    text = to_text(simulation(standing_blocks=1500), title="t.npz")
    assert "older blocks        1,500 live before the recording began, placed first" in text


def test_the_table_of_a_repeated_step() -> None:
    lines = to_text(repeated(), title="t.npz").splitlines()
    assert "repeated step       events 40 to 89, 2 times" in lines
    assert lines[-2].split() == ["1", "7", "3", "2,000", "0"]
    assert lines[-1].split() == ["2", "0", "0", "0", "3"]


def test_the_text_of_a_failure() -> None:
    text = to_text(simulation(failure=FAILURE), title="t.npz")
    assert "result              OUT OF MEMORY" in text
    assert text.splitlines()[-1] == (
        "The pool ran out at event 1,234 of the trace, after 1,200 events: a request of 6.0 MiB on "
        "stream 2 did not fit. Of 1.0 GiB, 1019.0 MiB were live and 5.0 MiB free; the largest free "
        "block had 3.0 MiB, and stitching could have joined 2 wholly free pages (4.0 MiB). Give a "
        "larger --capacity, or let --min-capacity find the smallest that completes."
    )


def test_sizes_of_a_failure_that_look_the_same_show_their_bytes() -> None:
    sizes = {"requested_bytes": GIB + 1, "free_bytes": GIB, "largest_hole_bytes": GIB - 512}
    text = to_text(simulation(failure=Failure(**{**FAILURE.__dict__, **sizes})), title="t.npz")
    assert "a request of 1.0 GiB (1,073,741,825 bytes) on stream" in text
    assert (
        "1.0 GiB (1,073,741,824 bytes) free; the largest free block had 1.0 GiB (1,073,741,312"
        in text
    )


def test_the_text_of_a_failure_in_a_round() -> None:
    for number, event, where in (
        (3, 1234, "at event 1,234 of the trace (round 3)"),
        (0, 1234, "at event 1,234 of the trace (before the first round)"),
        (2, -1, "at an added event (round 2)"),
    ):
        failure = Failure(**{**FAILURE.__dict__, "round": number, "event": event})
        assert where in to_text(repeated(failure=failure), title="t.npz")


def test_a_replay_too_short_for_the_clock() -> None:
    assert "too short to measure" in to_text(simulation(seconds=0.0), title="t.npz")


def test_doubts_about_the_recording_are_told() -> None:
    doubtful = simulation(notes=("the first", "the second"))
    assert to_text(doubtful, title="t.npz").endswith(
        "\n\nWarning: the first.\n\nWarning: the second."
    )
    assert to_json(doubtful)["warnings"] == ["the first", "the second"]


def test_private_pools_are_counted_apart() -> None:
    graphs = simulation(private_blocks=1200)
    expected = (
        "private pools       1,200 blocks, peak 3.0 MiB, not replayed: a pool does not serve them"
    )
    assert expected in to_text(graphs, title="t.npz").splitlines()
    assert to_json(graphs)["private_pools"] == {"blocks": 1200, "peak_live_bytes": 3 << 20}
    assert "private pools" not in to_text(simulation(), title="t.npz")


def test_a_title_is_one_line_without_escape_sequences() -> None:
    text = to_text(simulation(), title="a\x1b[2J\nresult completed\udce9.npz")
    first = text.splitlines()[0]
    assert first == r"trace               a\x1b[2J\nresult completed\udce9.npz"
