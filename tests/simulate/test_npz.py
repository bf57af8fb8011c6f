from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.traces import Row, outcome_of, write_npz
from hypothesis import given
from hypothesis import strategies as st

from vramkit.errors import TraceError
from vramkit.simulate import load_trace

ROWS: list[Row] = [
    ("segment_alloc", 64, 2 << 20, 0),
    ("alloc", 64, 100, 0),
    ("free_requested", 64, 100, 0),
    ("snapshot", 0, 0, 0),
    ("free_completed", 64, 100, 0),
    ("oom", 0, 999, 0),
]


def test_other_events_are_skipped(tmp_path: Path) -> None:
    events = load_trace(write_npz(tmp_path / "t.npz", ROWS))
    assert events.index.tolist() == [1, 4]
    assert events.size_bytes.tolist() == [100, 100]


def test_names_of_later_versions_are_skipped(tmp_path: Path) -> None:
    actions = np.array(["brand_new", "free_requested", "free_completed", "alloc"])
    path = write_npz(
        tmp_path / "t.npz", ROWS[:2], action=np.array([0, 3], dtype=np.int16), actions=actions
    )
    assert load_trace(path).index.tolist() == [1]


def test_times_are_not_needed(tmp_path: Path) -> None:
    assert load_trace(write_npz(tmp_path / "t.npz", ROWS, time_us=None)).block_count == 1


@pytest.mark.parametrize(
    ("replaced", "text"),
    [
        ({"addr": None}, "lacks the array 'addr'; a trace has action, addr, size, stream, actions"),
        ({"actions": None}, "lacks the array 'actions'"),
        ({"size": np.zeros(5, dtype=np.int64)}, "'size' has 5 entries, 'action' has 6"),
        (
            {"size": np.zeros(6)},
            "'size' is refused: it must hold integers.* it holds '<f8' of shape",
        ),
        (
            {"addr": np.zeros((6, 1), dtype=np.int64)},
            r"'addr' is refused: .* it holds '<i8' of shape \(6, 1\)",
        ),
        ({"action": np.full(6, 9, dtype=np.uint8)}, "event 0: action 9 is unknown, .* 0 to 8"),
        ({"action": np.full(6, -1)}, "event 0: action -1 is unknown"),
        ({"actions": np.arange(9)}, "'actions' must hold texts, it holds int64"),
        ({"size": np.array(["x"] * 6)}, "'size' must hold integers, it holds <U1"),
        ({"actions": np.array(["x" * 300])}, "texts have more than the 256 characters admitted"),
        ({"actions": np.array(["x"] * 300)}, "claims 300 entries, at most 256 are admitted"),
        ({"actions": np.array(["alloc"], dtype=object)}, r"'actions' is refused: .*it holds '\|O'"),
        ({"stream": np.array([None] * 6)}, r"'stream' is refused: .*it holds '\|O'"),
    ],
)
def test_arrays_are_checked(tmp_path: Path, replaced: dict[str, Any], text: str) -> None:
    path = write_npz(tmp_path / "t.npz", ROWS, **replaced)
    with pytest.raises(TraceError, match=text):
        load_trace(path)


def test_a_trace_of_too_many_events_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vramkit.simulate._npz.MAX_EVENTS", 5)
    with pytest.raises(TraceError, match=r"'action' is refused: .* 6 entries, at most 5 are adm"):
        load_trace(write_npz(tmp_path / "t.npz", ROWS))


def test_arrays_without_compression_and_of_other_byte_orders_are_read(tmp_path: Path) -> None:
    plain = write_npz(tmp_path / "t.npz", ROWS)
    with np.load(plain) as arrays:
        other = {
            name: array.astype(array.dtype.newbyteorder(">")) for name, array in arrays.items()
        }
    np.savez_compressed(tmp_path / "u.npz", **other)
    assert load_trace(tmp_path / "u.npz").size_bytes.tolist() == [100, 100]


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "t.npz", ROWS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(TraceError, match=r"t\.npz: the archive is damaged.*record the trace again"):
        load_trace(path)


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_damage_never_ends_in_another_exception(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: int, cut: bool
) -> None:
    path = write_npz(tmp_path_factory.mktemp("damage") / "t.npz", ROWS)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at : len(content) if cut else at + 1] = bytes([value])
    path.write_bytes(content)
    assert outcome_of(lambda: load_trace(path).block_count > 0) in (True, TraceError)
