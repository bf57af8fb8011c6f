"""Child processes answer their turns, and a run that compares unlike work is refused."""

import pytest

from benchmarks._shared.peers import Peer
from benchmarks.pool_cpu.__main__ import DEFAULT, Turn, check_same_work, rival_of, workers


def turn(loss: float) -> Turn:
    return Turn(ms=[1.0], faults=0.0, peak_rss_kib=1, loss=loss)


def test_a_process_answers_each_turn() -> None:
    with workers("small_mlp", [DEFAULT], "-") as started:
        worker = started[DEFAULT.name]
        first, second = worker.take_turn(0, 3), worker.take_turn(1, 2)
    assert (len(first.ms), len(second.ms)) == (3, 2)
    assert second.loss < first.loss


def test_a_peer_that_was_not_preloaded_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    absent = Peer("absent", None, "libabsent")
    with (
        pytest.raises(RuntimeError, match="the process of absent ended early with status 1"),
        workers("small_mlp", [absent], "-"),
    ):
        pass
    assert "'libabsent' is mapped: it was not preloaded" in capfd.readouterr().err


def test_different_losses_are_refused() -> None:
    check_same_work({"a": [turn(0.5)], "b": [turn(0.5)]})
    with pytest.raises(RuntimeError, match="different losses"):
        check_same_work({"a": [turn(0.5)], "b": [turn(0.6)]})
    with pytest.raises(RuntimeError, match="different losses"):
        check_same_work({"a": [turn(0.5)], "b": [turn(float("nan"))]})


def test_the_rival_is_the_best_preload_or_the_default() -> None:
    steps = {"default": 1.0, "jemalloc": 3.0, "tcmalloc": 2.0}
    assert rival_of("conv_net", steps) == "tcmalloc"
    assert rival_of("small_mlp", steps) == "default"
    assert rival_of("conv_net", {"default": 1.0}) == "default"
