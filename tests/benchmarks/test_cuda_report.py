"""The report of the CUDA benchmark compares only what one run has measured."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.cuda_results import CHOICE, LOOP, NEEDED, PEAK, begun, measure_all, play

from benchmarks.pool_cuda.figures import Time, geometric_mean, quickest_s, standing
from benchmarks.pool_cuda.picture import draw
from benchmarks.pool_cuda.report import doubts, rows
from benchmarks.pool_cuda.spec import (
    NATIVE,
    POOL,
    Measurement,
    Spec,
    reference_key,
    try_key,
    whole_key,
)
from benchmarks.pool_cuda.table import table


def test_standings_are_the_smallest_that_completed(path: Path) -> None:
    state = measure_all(path)
    for allocator in (NATIVE, "expandable", POOL):
        mine = standing(state, LOOP, allocator, CHOICE)
        assert mine.smallest is not None
        assert mine.exact
        assert NEEDED[allocator] <= mine.smallest.ratio <= NEEDED[allocator] + 0.042
    native = standing(state, LOOP, NATIVE, CHOICE).uncapped
    assert native is not None
    assert native.time == Time(100.0, 200.0, 1.0)


def test_times_of_peers_are_compared_only_where_one_run_made_all_of_them(path: Path) -> None:
    state = measure_all(path)
    for allocator in (NATIVE, "expandable"):
        mine = standing(state, LOOP, allocator, CHOICE)
        assert mine.smallest is not None
        assert mine.smallest.time is None
    assert not [row for row in rows(state, CHOICE) if row.metric == "step_at_smallest"]
    everyone = replace(CHOICE, parts=(*CHOICE.parts, "times"))
    state = measure_all(path, everyone)
    for allocator in (NATIVE, "expandable", POOL):
        mine = standing(state, LOOP, allocator, everyone)
        expected = 100.0 if allocator == NATIVE else 102.5
        for point in (mine.smallest, mine.uncapped):
            assert point is not None
            assert point.time == Time(expected, 200.0, pytest.approx(expected / 100.0))
    found = {(row.metric, row.peer): row for row in rows(state, everyone)}
    assert found["step_at_smallest", "expandable"].ratio == pytest.approx(1.0)
    assert found["step_uncapped", "expandable"].ratio == pytest.approx(1.0)
    assert found["step_at_smallest", NATIVE].ratio == pytest.approx(1.025)


def test_the_table_has_everyone_and_marks_what_is_unfinished(path: Path) -> None:
    everything = replace(CHOICE, parts=("reference", "whole", "startup", "peers", "smallest"))
    state = measure_all(path, everything)
    text = table(state, everything)
    assert f"| {LOOP} | expandable | 1.050 |" in text
    assert "| **all 1** | vramkit |" in text
    assert text.count("0.100 | 0.500 |") == 3
    assert "≤" not in text
    unfinished = begun(path.with_name("unfinished"))
    reference = Measurement(reference_key(LOOP), Spec("loop", NATIVE, LOOP, "synced"))
    unfinished.add(reference, play(reference.spec), 1.0)
    large = Spec("loop", "expandable", LOOP, capacity_bytes=2 * PEAK)
    unfinished.add(Measurement(try_key(LOOP, "expandable", 2.0), large), play(large), 1.0)
    assert "| ≤ 2.000 |" in table(unfinished, CHOICE)


def test_rows_compare_the_pool_with_native_round_by_round(path: Path) -> None:
    everything = replace(CHOICE, parts=(*CHOICE.parts, "host", "startup", "equal"))
    found = {
        (row.case, row.metric, row.peer): row
        for row in rows(measure_all(path, everything), everything)
    }
    loop = found[LOOP, "whole_loop_at_1.01", NATIVE]
    assert (loop.own.median, loop.own.repeats, loop.ratio) == (4.1, 2, pytest.approx(1.025))
    assert found[LOOP, "quickest_steps_at_1.01", NATIVE].ratio == 1.0
    assert found[LOOP, "completes_at_1.01", None].own.median == 1.0
    assert found[LOOP, "worst_step_at_1.03", NATIVE].own.median == 200.0
    assert found[LOOP, "mapping_calls_from_step_3", None].own.median == 0
    assert found[LOOP, "smallest_capacity", "expandable"].ratio < 1
    assert found["empty_1_MiB_8_threads", "pair_ns", NATIVE].own.repeats == 10
    together = found["empty_1_MiB_8_threads", "all_threads_ns_a_pair", NATIVE]
    assert (together.own.median, together.own.repeats) == (5200.0, 5)
    for case in ("startup", "startup_8_MiB_pages"):
        assert found[case, "first_tensor", NATIVE].own.median == 0.1


def test_other_losses_are_doubted(path: Path) -> None:
    state = measure_all(path)
    assert doubts(state, CHOICE) == []
    for number, wrong in enumerate([{"first_loss": 2.1}, {"last_loss": float("nan")}]):
        key = whole_key(LOOP, "vramkit@1.01", number)
        spec = Spec("loop", POOL, LOOP, capacity_bytes=2 * PEAK)
        state.add(Measurement(key, spec), play(spec) | wrong, 1.0)
        for other in (NATIVE, "vramkit@1.03", "vramkit@1.25"):
            key = whole_key(LOOP, other, number)
            state.add(Measurement(key, spec), play(spec), 1.0)
    begins, ends = doubts(state, CHOICE)
    assert "vramkit@1.01 began with loss 2.1, not 2" in begins
    assert "vramkit@1.01 ended with a loss that is not a number" in ends


def test_the_picture_is_drawn_of_what_there_is(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "memory.png"
    draw(measure_all(path), CHOICE, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(begun(tmp_path / "none"), CHOICE, picture)


def test_the_quickest_steps_leave_out_what_disturbed_a_round() -> None:
    assert quickest_s([{"steps_ms": [300.0, 900.0]}, {"steps_ms": [400.0, 100.0]}]) == 0.4


def test_geometric_mean_needs_every_value() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([1.0, None]) is None
    assert geometric_mean([]) is None
