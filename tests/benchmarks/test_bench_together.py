"""The benchmark of the four parts together: its search, its guesses, a run on the CPU."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.together.__main__ import CONTESTANTS, GIB, LIMIT_BYTES, ON_CPU, PEER, guesses
from benchmarks.together.child import Child
from benchmarks.together.search import largest, next_try

ROOT = Path(__file__).resolve().parents[2]


def up_to(limit: int, tried: list[int]) -> Callable[[int], bool]:
    def attempt(number: int) -> bool:
        tried.append(number)
        return number <= limit

    return attempt


@pytest.mark.parametrize("limit", [700, 930, 990, 1010, 1100])
def test_the_search_ends_within_two_per_cent(limit: int) -> None:
    tried: list[int] = []
    fits, fails = largest(up_to(limit, tried), 1000, most_tries=10)
    assert fits is not None
    assert fails is not None
    assert fits <= limit < fails <= fits * 1.021
    assert len(tried) == len(set(tried)) <= 10


def test_few_tries_find_a_number_that_fits() -> None:
    tried: list[int] = []
    fits, fails = largest(up_to(800, tried), 1000, most_tries=3)
    assert fits == max(number for number in tried if number <= 800)
    assert fails == min(number for number in tried if number > 800)
    assert largest(up_to(10, []), 1000, most_tries=2)[0] is None
    assert largest(up_to(5000, []), 1000, most_tries=1) == (1000, None)


def test_a_number_is_not_tried_when_enough_is_known() -> None:
    assert next_try({}, 100) == 100
    assert next_try({100: True, 102: False}, 100) is None
    assert next_try({100: True, 95: False}, 100) is None


def test_guesses_follow_from_peaks() -> None:
    own = {"peak_bytes": 3 * GIB, "table_bytes": 1 * GIB}
    theirs = {"peak_bytes": 8 * GIB, "table_bytes": 4 * GIB}
    base = replace(ON_CPU, batch=1024, rows=1000)
    start = guesses(base, {PEER: [theirs], "vramkit": [own]})
    limit = LIMIT_BYTES // GIB
    assert start["own_batch"] == (limit - 1) * 1024 // 2
    assert start["stock_batch"] == (limit - 4) * 1024 // 4
    assert start["stock_table"] == (limit - 4) * 1000 // 4


def test_a_child_says_that_memory_ran_out() -> None:
    spec = replace(ON_CPU, limit_bytes=4 << 20)
    with Child(spec, 120.0) as child:
        child.wait_ready()
        figures = child.turn()
    assert not figures["ok"]
    assert figures["out_of_memory"]


def test_a_child_that_fails_says_why() -> None:
    with Child(replace(ON_CPU, batch=0), 120.0) as child:
        child.wait_ready()
        with pytest.raises(RuntimeError, match="batch_size"):
            child.turn()


@pytest.mark.slow
def test_it_runs_on_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.together", "--device", "cpu", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(CONTESTANTS) - 1
    assert all("samples_per_s" in line and PEER in line for line in lines)
