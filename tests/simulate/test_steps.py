from pathlib import Path

import numpy as np
import pytest
from helpers.traces import TRACES, events_of
from hypothesis import given
from hypothesis import strategies as st

from vramkit.errors import TraceError
from vramkit.simulate import Events, Step, find_heaviest_step, load_trace


def loop(
    steps: list[list[int]], *, floor: list[int], teardown: bool = False
) -> tuple[Events, list[Step]]:
    """Steps that allocate their sizes and free them in reverse, over a floor of blocks."""
    blocks, sizes = list(range(len(floor))), list(floor)
    places = []
    for step in steps:
        new = list(range(len(sizes), len(sizes) + len(step)))
        places.append(Step(start=len(blocks), stop=len(blocks) + 2 * len(step)))
        blocks += [*new, *reversed(new)]
        sizes += step
    if teardown:
        blocks += range(len(floor))
    return events_of(blocks, sizes=sizes), places


def test_the_step_with_the_highest_peak_is_found() -> None:
    events, places = loop([[5, 40, 30], [5, 60, 40], [5, 40, 35], [9, 50]], floor=[20, 30])
    assert find_heaviest_step(events) == places[1]


def test_the_first_of_equal_steps_is_taken() -> None:
    events, places = loop([[40, 30]] * 4, floor=[50])
    assert find_heaviest_step(events) == places[0]


def test_the_end_of_the_process_is_no_floor() -> None:
    events, places = loop([[40, 30], [60, 40], [50]], floor=[20, 80], teardown=True)
    assert find_heaviest_step(events) == places[1]


def test_light_steps_beside_the_heavy_one_are_left_out() -> None:
    events, places = loop([[80], [1], [70], [1], [90], [2], [80]], floor=[10])
    assert find_heaviest_step(events) == places[4]


def test_a_step_that_the_recording_cuts_off_does_not_count() -> None:
    events, places = loop([[60], [70], [60], [90, 90]], floor=[10])
    cut = places[3].start + 2
    shorter = events_of(
        events.block_id[:cut].tolist(), sizes=events.size_bytes[events.op == 0].tolist()
    )
    assert find_heaviest_step(shorter) == places[1]


def test_one_step_alone_is_found() -> None:
    events, places = loop([[60, 30]], floor=[])
    assert find_heaviest_step(events) == places[0]


def test_a_trace_that_only_grows_has_no_step() -> None:
    with pytest.raises(TraceError, match=r"no step can be found.*without --repeat-step"):
        find_heaviest_step(events_of([0, 1, 2], sizes=[10, 20, 30]))


@given(
    st.lists(st.lists(st.integers(40, 99), min_size=1, max_size=8), min_size=3, max_size=30),
    st.lists(st.integers(1, 500), max_size=3),
    st.sampled_from([1, 2, 150]),
)
def test_steps_of_any_shape_are_found(
    steps: list[list[int]], floor: list[int], repeats: int
) -> None:
    # Enough events that the curve is thinned out before the floor is looked for.
    fine = [[size for size in step for _ in range(repeats)] for step in steps]
    heaviest = max(sum(step) for step in fine)
    fine += [[heaviest]] * 3
    events, places = loop(fine, floor=[size * repeats for size in floor])
    found = find_heaviest_step(events)
    assert found == places[next(n for n, step in enumerate(fine) if sum(step) == heaviest)]


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_the_steps_of_recorded_loops_hold_the_peak(path: Path) -> None:
    events = load_trace(path)
    step = find_heaviest_step(events)
    live = np.concatenate([[0], events.live_bytes])
    inside = live[step.start : step.stop + 1]
    assert inside.max() == events.peak_live_bytes
    # The recordings hold 12 to 40 steps of unlike weight.
    assert len(events) / 100 < step.stop - step.start < len(events) / 8
    assert abs(int(inside[0]) - int(inside[-1])) < events.peak_live_bytes / 50
