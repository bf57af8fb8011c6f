"""The driver runs the whole sequence, and notices a peer that is not really there."""

from pathlib import Path

import pytest

from benchmarks._shared.peers import GLIBC, Peer
from benchmarks.pool_core.native_driver import build, run
from benchmarks.pool_core.traces import TRACES, write_event_file


@pytest.fixture(scope="module", autouse=True)
def driver() -> None:
    build()


def test_pairs_give_one_sample_a_batch() -> None:
    assert len(run("pairs", "malloc", GLIBC.mapped_as, [100, 7, 10, 1], GLIBC).samples) == 7


def test_a_trace_is_replayed_by_malloc(tmp_path: Path) -> None:
    events = write_event_file(TRACES / "gnn_sampled.npz", tmp_path, capacity="1.01x")
    arguments = [events.path, 2, events.capacity_bytes]
    outcome = run("replay", "malloc", GLIBC.mapped_as, arguments, GLIBC)
    assert len(outcome.samples) == 2
    assert events.path.stat().st_size == 16 * events.events


def test_a_peer_that_was_not_preloaded_is_an_error() -> None:
    absent = Peer("absent", None, "libabsent")
    with pytest.raises(RuntimeError, match="'libabsent' is mapped: not preloaded"):
        run("pairs", "malloc", absent.mapped_as, [100, 1, 10, 1], absent)


def test_an_unknown_allocator_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="unknown allocator 'other'"):
        run("pairs", "other", "-", [100, 1, 10, 1], GLIBC)


def test_a_missing_core_library_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot open shared object file"):
        run("pairs", "pool", str(tmp_path / "absent.so"), [100, 1, 10, 1], GLIBC)
