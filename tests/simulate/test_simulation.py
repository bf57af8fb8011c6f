from pathlib import Path

import pytest
from helpers.traces import TRACES, Row, write_npz

from vramkit.errors import CapacityError, InvalidArgumentError
from vramkit.simulate import Options, load_trace, replay, simulate

MIB = 1 << 20
PAGE = 2 * MIB
SEVERAL_STREAMS = ("resnet_prefetch", "offload_streams")
ONE_STREAM = [path for path in TRACES if path.stem not in SEVERAL_STREAMS]

ROWS: list[Row] = [
    ("alloc", 64, 300 * MIB, 0),
    ("free_completed", 64, 300 * MIB, 0),
    ("alloc", 96, 200 * MIB, 0),
]


@pytest.mark.parametrize(
    ("path", "page_bytes"),
    [*((path, PAGE) for path in TRACES), *((path, 2 * PAGE) for path in ONE_STREAM)],
    ids=lambda value: value.stem if isinstance(value, Path) else f"{value // MIB}MiB",
)
def test_recorded_traces_complete_at_1_01(path: Path, page_bytes: int) -> None:
    outcome = simulate(path, Options(capacity="1.01x", page_bytes=page_bytes))
    assert outcome.completed
    assert outcome.ratio <= 1.01
    assert outcome.replay.stitched_requests <= 10
    # The pool's own books stay below a thousandth of the capacity.
    assert outcome.replay.metadata_bytes * 1000 < outcome.replay.capacity_bytes


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_repeated_step_maps_nothing_after_its_second_round(path: Path) -> None:
    outcome = simulate(path, Options(capacity="1.01x", repeat_step=12))
    assert outcome.completed
    assert len(outcome.replay.rounds) == 12
    assert [counters.mapping_calls for counters in outcome.replay.rounds[2:]] == [0] * 10


@pytest.mark.parametrize("name", SEVERAL_STREAMS)
def test_memory_of_one_stream_serves_others_at_the_price_of_waits(name: str) -> None:
    (path,) = (path for path in TRACES if path.stem == name)
    assert simulate(path).replay.cross_stream_waits > 0


def test_without_a_capacity_1_01_is_taken(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "t.npz", ROWS)
    assert simulate(path).replay.capacity_bytes == 151 * PAGE
    assert simulate(path, Options(capacity="1.01x")).replay.capacity_bytes == 151 * PAGE


def test_the_smallest_capacity_is_found(tmp_path: Path) -> None:
    outcome = simulate(write_npz(tmp_path / "t.npz", ROWS), Options(min_capacity=True))
    assert outcome.completed
    assert outcome.ratio == 1.0


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_page_less_than_the_smallest_capacity_fails(path: Path) -> None:
    outcome = simulate(path, Options(min_capacity=True))
    assert outcome.completed
    smallest = outcome.replay.capacity_bytes
    assert replay(load_trace(path), capacity_bytes=smallest - PAGE).failure is not None


def test_a_repeated_step_has_the_trace_s_peak(tmp_path: Path) -> None:
    rows: list[Row] = []
    for size in (100, 300, 200):
        rows += [("alloc", 64, size * MIB, 0), ("free_completed", 64, size * MIB, 0)]
    outcome = simulate(write_npz(tmp_path / "t.npz", rows), Options(repeat_step=5))
    assert outcome.repetition is not None
    assert (outcome.repetition.step.start, outcome.repetition.step.stop) == (2, 4)
    assert outcome.replay.events == 2 + 5 * 2
    assert outcome.peak_live_bytes == 300 * MIB


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "t.npz", ROWS)
    with pytest.raises(InvalidArgumentError, match="exclude each other"):
        simulate(path, Options(capacity="1x", min_capacity=True))


def test_a_trace_smaller_than_a_page_says_what_to_ask_for(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "t.npz", [("alloc", 64, 100, 0)])
    with pytest.raises(CapacityError, match="--capacity 2MiB"):
        simulate(path)
    assert simulate(path, Options(capacity="2MiB")).completed


@pytest.mark.parametrize("page_bytes", [0, -1, 3 * MIB, 512])
def test_a_page_that_cannot_be(tmp_path: Path, page_bytes: int) -> None:
    path = write_npz(tmp_path / "t.npz", ROWS)
    with pytest.raises(InvalidArgumentError, match="page"):
        simulate(path, Options(page_bytes=page_bytes))
