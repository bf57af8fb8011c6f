"""The plan follows from what is done, a run ends in time, and the report is of what was measured.

No GPU: results are made up, and children are replaced by a player of such results.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import _cuda_run
import pytest
import torch
from _cuda_figures import CONTESTANTS, geometric_mean, standing, whole_rounds
from _cuda_loops import LOOPS, Loop
from _cuda_picture import draw
from _cuda_plan import (
    EQUAL_CYCLE,
    MIB,
    NATIVE,
    POOL,
    Bracket,
    Choice,
    Measurement,
    Result,
    Spec,
    capacity_bytes,
    contestants,
    next_try,
    pending,
    reference_key,
    try_key,
    whole_key,
)
from _cuda_report import doubts, rows
from _cuda_run import Budget, OutOfTimeError, run
from _cuda_state import State, continue_from
from _cuda_table import table
from _cuda_worker import steps_of
from _provenance import ROOT, Provenance

LOOP = "unet_tiles"
PEAK = 1000 * MIB
NEEDED = {NATIVE: 1.3, "expandable": 1.05, "async": 1.1, POOL: 1.004}
CHOICE = Choice((LOOP,), ("reference", "whole", "peers", "smallest"), 2, 2 * MIB, ("expandable",))
ORIGIN = Provenance(
    commit="0123456789ab",
    dirty=False,
    date="2026-01-02T03:04:05+00:00",
    device="Some GPU",
    torch="2.11.0",
    cuda="13.0",
    driver="580",
    kernel="6.1",
    python="3.12.3",
)


def play(spec: Spec) -> dict[str, object]:
    """What a child would say, were each allocator to need a fixed multiple of the peak."""
    if spec.kind == "host":
        cases = ("1 MiB_1", "1 MiB_8", "4 KiB_1", "4 KiB_8")
        together = {f"{case}_together": [5200.0] for case in cases}
        return {"ok": True} | {case: [5000.0, 5100.0] for case in cases} | together
    if spec.kind == "startup":
        turn = {"first_s": 0.1, "all_s": 0.5, "returned_s": 0.05, "closed_s": 0.2, "page_bytes": 8}
        return {"ok": True, "turns": [turn, turn]}
    if spec.capacity_bytes is not None and spec.capacity_bytes < NEEDED[spec.allocator] * PEAK:
        return {"ok": False, "steps_done": 3, "out_of_memory": "no", "first_loss": 2.0}
    total_s = 4.0 if spec.allocator == NATIVE else 4.1
    return {
        "ok": True,
        "total_s": total_s,
        "steps_done": 40,
        "steps_ms": [900.0] + [80.0] * 38 + [200.0],
        "first_loss": 2.0,
        "last_loss": 1.0,
        "peak_requested_bytes": PEAK,
        "peak_reserved_bytes": int(NEEDED[spec.allocator] * PEAK),
        "capacity_bytes": spec.capacity_bytes,
        "page_bytes": 2 * MIB,
        "mapping_calls": 12,
        "calls_by_step": [7, 9, 9, 9, 9, 9] if spec.mode == "equal" else [],
        "stitched_requests": 2,
    }


class Player:
    """Stands for the child processes: knows who was started, who measured and who was stopped."""

    def __init__(self, seconds_each: float = 10.0) -> None:
        self.now = 100.0
        self.seconds_each = seconds_each
        self.started: list[str] = []
        self.turns: list[str] = []
        self.measured: list[str] = []
        self.stopped: list[str] = []

    def budget(self, seconds: float) -> Budget:
        return Budget(seconds, self.now, lambda: self.now)

    def start(self, measurement: Measurement) -> "Played":
        self.started.append(measurement.key)
        return Played(self, measurement)


class Played:
    def __init__(self, player: Player, measurement: Measurement) -> None:
        self.player, self.measurement = player, measurement

    def wait_ready(self, timeout_s: float) -> None:
        assert timeout_s > 0

    def turn(self, timeout_s: float) -> Result | None:
        key = self.measurement.key
        self.player.turns.append(key)
        if key.startswith("whole/") and self.player.turns.count(key) < 3:
            return None
        if self.player.seconds_each > timeout_s:
            self.player.now += timeout_s
            raise OutOfTimeError
        self.player.now += self.player.seconds_each
        self.player.measured.append(key)
        return play(self.measurement.spec)

    def stop(self) -> None:
        self.player.stopped.append(self.measurement.key)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.jsonl"


def begun(path: Path, *, commit: str | None = None) -> State:
    state = State(path, commit=commit)
    state.begin_run(ORIGIN)
    return state


def measure_all(path: Path, choice: Choice = CHOICE) -> State:
    player = Player()
    state = begun(path)
    assert run(state, choice, player.budget(1e6), player.start)
    return state


# ---- the plan


def test_capacity_is_whole_pages_and_never_more_than_asked_for() -> None:
    assert capacity_bytes(1.01, PEAK, 2 * MIB) == 1010 * MIB
    assert capacity_bytes(1.01, PEAK + MIB, 2 * MIB) == 1010 * MIB
    assert capacity_bytes(1.01, PEAK, 32 * MIB) == 992 * MIB
    assert capacity_bytes(1.01, PEAK, MIB // 4) == 1010 * MIB


def test_what_needs_the_peak_comes_after_it(path: Path) -> None:
    state = begun(path)
    keys = [each.key for group in pending(state, CHOICE) for each in group]
    assert keys == [reference_key(LOOP), f"peers/{LOOP}/expandable"]
    reference = pending(state, CHOICE)[0][0]
    state.add(reference, play(reference.spec), 5.0)
    first, second, *_ = pending(state, CHOICE)
    assert [each.spec.capacity_bytes for each in first] == [
        None,
        1010 * MIB,
        1030 * MIB,
        1250 * MIB,
    ]
    # Another contestant begins the next round.
    assert second[0].key == whole_key(LOOP, "vramkit@1.01", 1)
    assert second[-1].key == whole_key(LOOP, NATIVE, 1)


def test_a_loop_whose_reference_fails_is_left_at_that(path: Path) -> None:
    state = begun(path)
    choice = replace(CHOICE, parts=("reference", "whole", "smallest"))
    state.add(pending(state, choice)[0][0], {"ok": False, "crash": "status 1"}, 1.0)
    assert pending(state, choice) == []
    assert state.forget_failures() == 1
    assert len(pending(state, choice)) == 1


@pytest.mark.parametrize("needed", [0.5, 1.0, 1.004, 1.09, 1.3, 2.07, 2.3])
@pytest.mark.parametrize("tolerance", [0.01, 0.04])
def test_the_search_ends_at_the_smallest_that_completes(needed: float, tolerance: float) -> None:
    bracket = Bracket(0.4, 2.07, tolerance)
    tries: dict[float, bool] = {}
    while (ratio := next_try(tries, bracket)) is not None:
        assert ratio not in tries
        tries[ratio] = ratio >= needed
    least = min(ratio for ratio, ok in tries.items() if ok)
    assert needed <= least <= needed + tolerance + 0.002
    assert len(tries) <= 16


def test_the_search_gives_up_when_nothing_completes() -> None:
    tries: dict[float, bool] = {}
    while (ratio := next_try(tries, Bracket(0.99, 1.2, 0.04))) is not None:
        tries[ratio] = False
    assert 5 < len(tries) < 60


def test_rmm_is_no_contestant_where_it_would_be_wrong() -> None:
    assert contestants("resnet_prefetch", ("async", "rmm")) == ["async"]
    assert contestants(LOOP, ("async", "rmm")) == ["async", "rmm"]


def test_equal_steps_ask_for_the_same() -> None:
    drawn: list[int] = []

    def make(draws: random.Random) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            drawn.append(draws.randrange(1_000_000))
            return torch.zeros(())

        return step

    LOOPS["counted"] = Loop(make, "draws numbers", 5, seed=3)
    try:
        step, count = steps_of(LOOPS["counted"], "equal")
    finally:
        del LOOPS["counted"]
    for _ in range(count):
        step()
    cycle = drawn[:EQUAL_CYCLE]
    assert len(set(cycle)) == EQUAL_CYCLE
    assert drawn == cycle * count


# ---- resuming


def test_a_later_run_goes_on_where_the_last_one_stopped(path: Path) -> None:
    first, second = Player(), Player()
    assert not run(begun(path), CHOICE, first.budget(95.0), first.start)
    assert run(begun(path), CHOICE, second.budget(1e6), second.start)
    assert first.measured
    assert second.measured
    assert not set(first.measured) & set(second.measured)
    assert run(State(path), CHOICE, second.budget(1.0), second.start)


def test_a_group_that_two_runs_share_is_made_again(path: Path) -> None:
    state = begun(path)
    reference = pending(state, CHOICE)[0][0]
    state.add(reference, play(reference.spec), 5.0)
    group = pending(state, CHOICE)[0]
    for each in group[:2]:
        state.add(each, play(each.spec), 5.0)
    later = begun(path)
    for each in group[2:]:
        later.add(each, play(each.spec), 5.0)
    assert not later.complete(group)
    assert whole_rounds(later, LOOP, 2)[NATIVE] == []
    assert pending(later, CHOICE)[0] == group


def test_the_pool_at_another_commit_does_not_count(path: Path) -> None:
    measure_all(path)
    same = State(path, commit=ORIGIN.label)
    assert (same.dropped, pending(same, CHOICE)) == (0, [])
    other = State(path, commit="fedcba987654")
    assert other.dropped > 0
    assert other.result(f"peers/{LOOP}/expandable") is not None
    assert other.result(whole_key(LOOP, "vramkit@1.01", 0)) is None
    assert pending(other, CHOICE)[0][0].key == whole_key(LOOP, NATIVE, 0)


def test_an_unfinished_line_is_cut_off(path: Path) -> None:
    measure_all(path)
    whole = path.read_text()
    path.write_text(whole + '{"run": "2026-')
    assert pending(State(path), CHOICE) == []
    assert path.read_text() == whole


def test_a_new_state_file_can_begin_with_an_earlier_one(path: Path, tmp_path: Path) -> None:
    measure_all(path)
    later = tmp_path / "later" / "state.jsonl"
    continue_from([path], later)
    assert pending(State(later), CHOICE) == []
    with pytest.raises(FileExistsError, match="leave --resume out"):
        continue_from([path], later)


def test_of_several_earlier_files_the_latest_measurement_counts(tmp_path: Path) -> None:
    reference = Measurement(reference_key(LOOP), Spec("loop", NATIVE, LOOP, "synced"))
    host = Measurement("host/native/0", Spec("host", NATIVE))
    paths = [tmp_path / name for name in ("first", "second", "both")]
    for number, path in enumerate(paths[:2]):
        state = begun(path)
        state.add(reference, {"ok": True, "number": number}, 1.0)
        if number == 0:
            state.add(host, {"ok": True}, 1.0)
    paths[1].write_text(paths[1].read_text() + '{"run": "unfini')
    continue_from([paths[1], paths[0]], paths[2])
    both = State(paths[2])
    assert both.result(reference.key) == {"ok": True, "number": 1}
    assert both.result(host.key) == {"ok": True}
    assert not both.complete((reference, host)), "no one run made both"


# ---- the budget


def test_a_group_that_does_not_fit_is_not_begun(path: Path) -> None:
    player = Player(seconds_each=10.0)
    # The reference is taken to last 30 s, then known to last 10 s; a round has four runs.
    assert not run(begun(path), CHOICE, player.budget(55.0), player.start)
    assert player.measured == [reference_key(LOOP), f"peers/{LOOP}/expandable"]
    assert player.now <= 155.0


def test_what_the_budget_cuts_off_is_not_noted_and_everyone_is_stopped(path: Path) -> None:
    player = Player(seconds_each=50.0)
    assert not run(begun(path), CHOICE, player.budget(40.0), player.start)
    assert player.measured == []
    assert sorted(player.stopped) == sorted(player.started) != []
    assert State(path).result(reference_key(LOOP)) is None


def test_a_round_takes_turns_each_time_begun_by_another(path: Path) -> None:
    player = Player()
    choice = replace(CHOICE, parts=("reference", "whole"), rounds=1)
    assert run(begun(path), choice, player.budget(1e6), player.start)
    native, *pool = [whole_key(LOOP, who, 0) for who in CONTESTANTS]
    assert player.turns == [
        reference_key(LOOP),
        *(native, *pool),
        *(*pool, native),
        *(*pool[1:], native, pool[0]),
    ]
    assert player.measured == [reference_key(LOOP), *pool[1:], native, pool[0]]


def test_a_loop_too_large_for_several_at_once_runs_to_its_end_in_one_turn(path: Path) -> None:
    player = Player()
    large = "offload_streams"
    choice = replace(CHOICE, loops=(large,), parts=("reference", "whole"), rounds=2)
    assert run(begun(path), choice, player.budget(1e6), player.start)
    first, second = ([whole_key(large, who, n) for who in CONTESTANTS] for n in (0, 1))
    rounds = [*first, *second[1:], second[0]]
    assert player.measured == [reference_key(large), *rounds]
    assert player.turns == [reference_key(large), *(key for key in rounds for _ in range(3))]


def test_what_takes_too_long_has_failed(path: Path) -> None:
    player = Player(seconds_each=_cuda_run.LONGEST_S + 1)
    choice = replace(CHOICE, parts=("reference",))
    state = begun(path)
    assert run(state, choice, player.budget(1e4), player.start)
    result = state.result(reference_key(LOOP))
    assert result is not None
    assert result["crash"] == "took longer than 150 s"


# ---- the report


def test_standings_are_the_smallest_that_completed(path: Path) -> None:
    state = measure_all(path)
    for allocator in (NATIVE, "expandable", POOL):
        mine = standing(state, LOOP, allocator, CHOICE)
        assert mine.smallest is not None
        assert mine.exact
        assert NEEDED[allocator] <= mine.smallest.ratio <= NEEDED[allocator] + 0.042
        assert mine.smallest.worst_ms == 200.0
    assert standing(state, LOOP, NATIVE, CHOICE).uncapped is not None


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


def test_geometric_mean_needs_every_value() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([1.0, None]) is None
    assert geometric_mean([]) is None


def command(*options: str) -> "subprocess.CompletedProcess[str]":
    script = str(ROOT / "benchmarks" / "bench_pool_cuda.py")
    return subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("option", ["--help", "--plan", "--report"])
def test_the_command_line_needs_no_gpu(option: str, path: Path) -> None:
    measure_all(path)
    done = command(option, "--state", str(path), "--page-mib", "2")
    expected = {"--help": "--budget-s", "--plan": "about ", "--report": "smallest capacity"}
    assert done.returncode == 0, done.stderr
    assert expected[option] in done.stdout


def test_a_report_is_of_the_commit_that_is_asked_for(path: Path) -> None:
    measure_all(path)
    later = replace(ORIGIN, commit="fedcba987654", date="2026-03-04T05:06:07+00:00")
    state = State(path)
    state.begin_run(later)
    assert state.latest_origin(None) == later
    assert state.latest_origin(ORIGIN.label) == ORIGIN
    assert state.latest_origin("0f0f0f0f0f0f") is None
    options = ("--report", "--state", str(path), "--page-mib", "2", "--commit")
    assert "smallest_capacity" in command(*options, ORIGIN.label).stdout
    assert "smallest_capacity" not in command(*options, later.label).stdout
    assert "nothing that was measured at commit 0f0f" in command(*options, "0f0f0f0f0f0f").stdout


def test_a_state_file_is_for_one_page_size(path: Path) -> None:
    measure_all(path)
    done = command("--report", "--state", str(path), "--page-mib", "8")
    assert done.returncode == 2
    assert "holds loops in other pages (2 MiB)" in done.stdout


def test_a_state_line_holds_what_was_asked_for(path: Path) -> None:
    measure_all(path)
    header, first, *_ = map(json.loads, path.read_text().splitlines())
    assert header["origin"]["device"] == "Some GPU"
    assert first["spec"] == Spec("loop", NATIVE, LOOP, "synced").as_json()
