"""Several threads serve one model, a stream each: what parts of pages cost, and nothing else does.

``docs/design/streams.md`` has the figures; the shared traces hold no such loop.
"""

from __future__ import annotations

import pytest
from helpers.serving import Serving, serving_events
from helpers.traces import live_curve

from vramkit.simulate import Events, replay

SEEDS = range(2)


def _completes(events: Events, ratio: float, page_bytes: int) -> bool:
    capacity_bytes = int(events.peak_live_bytes * ratio) // page_bytes * page_bytes
    return replay(events, capacity_bytes=capacity_bytes, page_bytes=page_bytes).failure is None


@pytest.mark.parametrize("seed", SEEDS)
def test_the_events_are_sound_and_several_streams_are_at_work(seed: int) -> None:
    events = serving_events(Serving(seed, rounds=1, new_tokens=2))
    curve = live_curve(events)
    assert max(curve) == events.peak_live_bytes
    assert set(events.stream.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("seed", SEEDS)
def test_small_pages_need_a_hundredth_above_the_peak(seed: int) -> None:
    assert _completes(serving_events(Serving(seed)), 1.01, 64 << 10)


@pytest.mark.parametrize("seed", SEEDS)
def test_pages_of_two_mebibytes_need_little_more(seed: int) -> None:
    assert _completes(serving_events(Serving(seed)), 1.03, 2 << 20)
