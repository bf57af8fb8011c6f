"""The plan follows from what is done, and a run ends in time.

No GPU: results are made up, and children are replaced by a player of such results.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.cuda_results import (
    CHOICE,
    LOOP,
    ORIGIN,
    PEAK,
    Player,
    begun,
    measure_all,
    play,
)

from benchmarks._shared.provenance import ROOT
from benchmarks.pool_cuda import run as cuda_run
from benchmarks.pool_cuda.figures import CONTESTANTS, whole_rounds
from benchmarks.pool_cuda.loops import LOOPS, Loop
from benchmarks.pool_cuda.plan import (
    pending,
)
from benchmarks.pool_cuda.run import run
from benchmarks.pool_cuda.search import (
    Bracket,
    next_try,
)
from benchmarks.pool_cuda.spec import (
    EQUAL_CYCLE,
    MIB,
    NATIVE,
    POOL,
    Measurement,
    Spec,
    capacity_bytes,
    contestants,
    reference_key,
    takes_turns,
    uncapped_key,
    whole_key,
)
from benchmarks.pool_cuda.state import State, continue_from
from benchmarks.pool_cuda.worker import steps_of

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
    player = Player(seconds_each=cuda_run.LONGEST_S + 1)
    choice = replace(CHOICE, parts=("reference",))
    state = begun(path)
    assert run(state, choice, player.budget(1e4), player.start)
    result = state.result(reference_key(LOOP))
    assert result is not None
    assert result["crash"] == "took longer than 150 s"


def test_everyone_at_once_needs_every_search_to_be_over_and_goes_one_after_another(
    path: Path,
) -> None:
    state = measure_all(path, replace(CHOICE, parts=("reference", "whole", "peers")))
    times = replace(CHOICE, parts=("times",))
    assert pending(state, times) == []
    (group,) = pending(measure_all(path), times)
    assert [(each.spec.allocator, each.spec.capacity_bytes is None) for each in group] == [
        *((NATIVE, True), (NATIVE, False)),
        *((POOL, False), (POOL, False)),
        *(("expandable", True), ("expandable", False)),
    ]
    assert not takes_turns(group)
    assert takes_turns(group[:4])


def test_who_fails_without_a_limit_does_not_keep_the_others_from_being_timed(path: Path) -> None:
    state = measure_all(path)
    key = uncapped_key(LOOP, "expandable")
    state.add(Measurement(key, Spec("loop", "expandable", LOOP)), {"ok": False, "crash": "x"}, 1.0)
    (group,) = pending(state, replace(CHOICE, parts=("times",)))
    assert [each.spec.allocator for each in group] == [NATIVE, NATIVE, POOL, POOL]


# ---- the command line


def command(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.pool_cuda", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
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
