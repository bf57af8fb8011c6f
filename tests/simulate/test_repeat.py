import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.traces import TRACES, events_of, live_curve
from hypothesis import given
from hypothesis import strategies as st

from vramkit.errors import InvalidArgumentError
from vramkit.simulate import Events, Step, find_heaviest_step, load_trace, repeat_step

KIB = 1 << 10


def plain_repeat(events: Events, step: Step, rounds: int) -> list[tuple[int, int, int]]:
    """The same by lists and dictionaries: (op, size, stream) of each event."""
    columns = (events.op, events.block_id, events.size_bytes, events.stream)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    out = [(op, size, stream) for op, _, size, stream in rows[: step.start]]
    inside = rows[step.start : step.stop]
    born = [block for op, block, _, _ in inside if op == 0]
    dead = [block for op, block, _, _ in inside if op == 1]
    kind = {block: (size, stream) for _, block, size, stream in rows}
    left = [block for block in born if block not in dead]
    wanted = [block for block in dead if block not in born]
    surplus, missing = [], Counter(kind[block] for block in wanted)
    for block in left:
        if missing[kind[block]]:
            missing[kind[block]] -= 1
        else:
            surplus.append(block)
    have = Counter(kind[block] for block in left)
    lacking = []
    for block in wanted:
        if have[kind[block]]:
            have[kind[block]] -= 1
        else:
            lacking.append(block)
    for _ in range(rounds):
        out += [(op, size, stream) for op, _, size, stream in inside]
        out += [(1, *kind[block]) for block in surplus]
        out += [(0, *kind[block]) for block in lacking]
    return out


def assert_rounds_are_alike(events: Events, step: Step, rounds: int) -> None:
    repetition = repeat_step(events, step, rounds=rounds)
    made = repetition.events
    curve = np.array([0, *live_curve(made)])
    borders = [*repetition.round_starts, len(made)]
    assert len(repetition.round_starts) == rounds
    assert {int(curve[border]) for border in borders} == {int(curve[step.start])}
    original = np.array([0, *live_curve(events)])[step.start : step.stop + 1]
    for start, stop in itertools.pairwise(borders):
        assert curve[start : start + len(original)].tolist() == original.tolist()
        assert curve[start : stop + 1].max() == original.max()


def test_a_step_that_leaves_nothing_is_repeated_as_it_is() -> None:
    events = events_of([0, 1, 2, 2, 1, 3], sizes=[50, 10, 20, 7])
    repetition = repeat_step(events, Step(1, 5), rounds=3)
    assert repetition.events.block_id.tolist() == [0, 1, 2, 2, 1, 3, 4, 4, 3, 5, 6, 6, 5]
    assert repetition.round_starts == (1, 5, 9)
    assert repetition.events.index.tolist() == [0, *[1, 2, 3, 4] * 3]


def test_a_block_handed_to_the_next_step_is_freed_by_the_next_round() -> None:
    # The step frees the batch that stood before it (0) and leaves the next one (1).
    events = events_of([0, 1, 2, 0, 2], sizes=[8, 8, 30])
    repetition = repeat_step(events, Step(1, 5), rounds=3)
    assert repetition.events.block_id.tolist() == [0, 1, 2, 0, 2, 3, 4, 1, 4, 5, 6, 3, 6]
    assert repetition.events.op.tolist() == [0, *[0, 0, 1, 1] * 3]


def test_a_block_without_a_partner_is_put_right_at_the_end_of_the_round() -> None:
    # As above, but the next batch is larger.
    events = events_of([0, 1, 2, 0, 2], sizes=[8, 9, 30])
    repetition = repeat_step(events, Step(1, 5), rounds=2)
    assert repetition.events.block_id.tolist() == [0, 1, 2, 0, 2, 1, 3, 4, 5, 3, 5, 4, 6]
    assert repetition.events.op.tolist() == [0, *[0, 0, 1, 1, 1, 0] * 2]
    assert repetition.events.index.tolist() == [0, *[1, 2, 3, 4, -1, -1] * 2]
    assert repetition.events.live_bytes[[0, 6, 12]].tolist() == [8, 8, 8]


def test_blocks_of_other_streams_are_no_partners() -> None:
    events = events_of([0, 1, 0], sizes=[8, 8])
    events.stream[1] = 1
    made = repeat_step(events, Step(1, 3), rounds=2).events
    assert made.op.tolist() == [0, *[0, 1, 1, 0] * 2]
    assert made.stream.tolist() == [0, *[1, 0, 1, 0] * 2]


@pytest.mark.parametrize("rounds", [0, -1, 1 << 40])
def test_the_number_of_rounds_is_checked(rounds: int) -> None:
    events = events_of([0, 0], sizes=[8])
    with pytest.raises(InvalidArgumentError, match=r"can be repeated 1 to 33554432 times, not"):
        repeat_step(events, Step(0, 2), rounds=rounds)


@st.composite
def cut_histories(draw: st.DrawFn) -> tuple[Events, Step]:
    """Events of any kind and any stretch of them as the step."""
    blocks: list[int] = []
    live: list[int] = []
    count = 0
    for _ in range(draw(st.integers(2, 40))):
        if live and draw(st.booleans()):
            blocks.append(live.pop(draw(st.integers(0, len(live) - 1))))
        else:
            blocks.append(count)
            live.append(count)
            count += 1
    sizes = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    streams = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    events = events_of(blocks, sizes=sizes)
    events.stream[:] = streams[events.block_id]
    start = draw(st.integers(0, len(blocks) - 1))
    return events, Step(start, draw(st.integers(start + 1, len(blocks))))


@given(cut_histories(), st.integers(1, 4))
def test_any_stretch_repeats_as_lists_and_dictionaries_say(
    history: tuple[Events, Step], rounds: int
) -> None:
    events, step = history
    made = repeat_step(events, step, rounds=rounds).events
    columns = (made.op, made.size_bytes, made.stream)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert rows == plain_repeat(events, step, rounds)
    assert_rounds_are_alike(events, step, rounds)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_rounds_of_recorded_steps_are_alike(path: Path) -> None:
    events = load_trace(path)
    assert_rounds_are_alike(events, find_heaviest_step(events), 12)
