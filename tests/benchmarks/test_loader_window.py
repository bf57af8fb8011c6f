"""The loader's benchmark measures a steady window, and the CPU time of that window alone."""

import itertools
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Any

import pytest
import torch

from benchmarks.loader.cases import cases, chosen
from benchmarks.loader.cpu_time import cpu_seconds
from benchmarks.loader.overlap import Steps
from benchmarks.loader.window import Window, measure, size_of, warm_up, warm_up_batches

SPUN_S = 0.4


SPIN = f"""
import time
while time.process_time() < {SPUN_S}:
    pass
print("spun", flush=True)
input()
"""


def slow_batches(taken: list[int], pause_s: float) -> Generator[Any, None, None]:
    for number in itertools.count():
        time.sleep(pause_s)
        taken.append(number)
        yield [torch.zeros(1000, dtype=torch.uint8)]


def test_live_and_ended_children_count_once() -> None:
    before = cpu_seconds()
    command = [sys.executable, "-S", "-c", SPIN]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "spun\n"
        alive = cpu_seconds()
        child.communicate("\n", timeout=30)
    ended = cpu_seconds()
    assert alive - before >= SPUN_S - 0.02
    # The end of an interpreter takes some time, too, but not that of the loop once more.
    assert -0.02 <= ended - alive < SPUN_S / 2


def test_own_time_counts() -> None:
    before = cpu_seconds()
    end = time.process_time() + SPUN_S
    while time.process_time() < end:
        pass
    assert cpu_seconds() - before >= SPUN_S


def test_warm_up_uses_every_slot() -> None:
    assert warm_up_batches({}) == 64
    assert warm_up_batches({"num_workers": 4}) == 64
    assert warm_up_batches({"num_workers": 15, "prefetch_factor": 4}) == 120


def test_warm_up_takes_its_batches_and_a_step_for_each() -> None:
    taken: list[int] = []
    steps: list[None] = []
    warm_up(slow_batches(taken, 0.001), Window(20, 0.02), lambda: steps.append(None))
    assert len(taken) >= 20
    assert len(steps) == len(taken)


def test_warm_up_ends_in_time() -> None:
    taken: list[int] = []
    warm_up(slow_batches(taken, 0.02), Window(10_000, 0.05))
    assert 1 <= len(taken) < 10


def test_the_window_leaves_the_warm_up_out() -> None:
    taken: list[int] = []
    turn = measure(slow_batches(taken, 0.002), Window(20, 0.1), on_gpu=False)
    assert 20 <= len(taken) - turn.batches <= 60
    assert turn.batches_per_s <= 500
    assert turn.gigabytes_per_s == pytest.approx(turn.batches_per_s * 1000 / 1e9)
    assert turn.cpu_s_per_gigabyte > 0


def test_a_window_of_few_batches_is_longer() -> None:
    window = Window(64, 2.0)
    assert not window.is_over(31, 2.0)
    assert window.is_over(31, 8.0)
    assert window.is_over(32, 2.0)
    assert not window.is_over(1000, 1.9)


def test_the_size_of_nested_batches() -> None:
    batch = {"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.uint8), torch.zeros(1)]}
    assert size_of(batch) == 12 + 2 + 4


def test_exposed_time_is_what_the_compute_does_not_explain() -> None:
    steps = Steps(with_loader_ms=12.5, compute_ms=10.0)
    assert (steps.exposed_ms, steps.over_compute) == (2.5, 1.25)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_names_of_cases_are_unique_and_can_be_chosen(on_gpu: bool) -> None:
    names = [case.name for case in cases(on_gpu=on_gpu)]
    assert len(set(names)) == len(names)
    found = [case.name for case in chosen(cases(on_gpu=on_gpu), "small_,tokens")]
    assert found == ["small_tensors_8", "small_tensors_32", "small_tensors_128", "tokens"]
    assert [case.name for case in chosen(cases(on_gpu=on_gpu), "")] == names
