"""The child processes of the CUDA benchmark, without a GPU."""

from pathlib import Path

import pytest
import torch

from benchmarks.pool_cuda import run as cuda_run
from benchmarks.pool_cuda.allocators import Books
from benchmarks.pool_cuda.run import Child, OutOfTimeError
from benchmarks.pool_cuda.spec import (
    NATIVE,
    TURN_ENDS,
    TURN_STEPS,
    Measurement,
    Result,
    Spec,
)
from benchmarks.pool_cuda.worker import Course, run_steps

LOOP = "unet_tiles"


def test_a_child_that_dies_has_failed_and_says_why() -> None:
    child = Child(Measurement("x", Spec("loop", NATIVE, "no_such_loop")))
    try:
        child.wait_ready(60.0)
        result = child.turn(60.0)
    finally:
        child.stop()
    assert result is not None
    assert not result["ok"]
    assert "KeyError: 'no_such_loop'" in result["crash"]


@pytest.mark.parametrize(
    ("last_words", "expected"),
    [
        ("print('{\"total_s\": 1}')", {"ok": True, "total_s": 1}),
        ("raise SystemExit('gone')", {"ok": False, "crash": "status 1: gone\n"}),
    ],
)
def test_a_child_gives_way_and_goes_on(
    last_words: str, expected: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "benchmarks" / "pool_cuda" / "worker.py"
    worker.parent.mkdir(parents=True)
    worker.write_text(
        f"print('ready', flush=True); input(); print('{TURN_ENDS}', flush=True); input()\n"
        + last_words
    )
    monkeypatch.setattr(cuda_run, "ROOT", tmp_path)
    child = Child(Measurement("x", Spec("loop", NATIVE, LOOP)))
    try:
        child.wait_ready(60.0)
        assert child.turn(60.0) is None
        assert child.turn(60.0) == expected
    finally:
        child.stop()


def test_a_child_that_is_not_ready_in_time_is_stopped() -> None:
    child = Child(Measurement("x", Spec("loop", NATIVE, LOOP)))
    with pytest.raises(OutOfTimeError):
        child.wait_ready(0.0)
    child.stop()
    child.stop()


class _Event:
    """An event that happens when it is recorded."""

    recorded = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        _Event.recorded += 1
        self.at = float(_Event.recorded)

    def elapsed_time(self, later: "_Event") -> float:
        return later.at - self.at


@pytest.mark.parametrize("count", [1, TURN_STEPS, 2 * TURN_STEPS + 2])
def test_a_loop_gives_way_between_its_turns(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    course = Course()
    given: list[int] = []

    def give_way() -> None:
        given.append(course.steps_done)
        _Event.recorded += 1000  # no step's time

    losses = iter(torch.arange(float(count)))
    run_steps(course, lambda: next(losses), count, Spec("loop", NATIVE), Books(dict), give_way)
    assert given == list(range(TURN_STEPS, count, TURN_STEPS))
    assert (course.ok, course.steps_done, course.steps_ms) == (True, count, [1.0] * count)
    assert (course.first_loss, course.last_loss) == (0.0, count - 1.0)
