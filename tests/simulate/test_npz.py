import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.traces import Row, outcome_of, write_npz
from hypothesis import given
from hypothesis import strategies as st

from vramkit.simulate import TraceError, load_trace

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
        ({"size": np.zeros(6)}, "'size' must hold integers in one dimension, it holds float64"),
        ({"addr": np.zeros((6, 1), dtype=np.int64)}, r"it holds int64 of shape \(6, 1\)"),
        ({"action": np.full(6, 9, dtype=np.uint8)}, "event 0: action 9 is unknown, .* 0 to 8"),
        ({"action": np.full(6, -1)}, "event 0: action -1 is unknown"),
        ({"actions": np.arange(9)}, "'actions' must hold texts"),
        ({"actions": np.array(["alloc"], dtype=object)}, "damaged.*allow_pickle=False"),
        ({"stream": np.array([None] * 6)}, "damaged.*allow_pickle=False"),
    ],
)
def test_arrays_are_checked(tmp_path: Path, replaced: dict[str, Any], text: str) -> None:
    path = write_npz(tmp_path / "t.npz", ROWS, **replaced)
    with pytest.raises(TraceError, match=text):
        load_trace(path)


def test_a_trace_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vramkit.simulate._npz._MAX_UNPACKED_BYTES", 100)
    with pytest.raises(TraceError, match=r"unpacks to .* more than the 100 admitted"):
        load_trace(write_npz(tmp_path / "t.npz", ROWS))


def test_a_header_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "t.npz", ROWS)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": (1 << 60,)}
    )
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["addr.npy"] = header.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(TraceError, match="damaged or no NumPy archive"):
        load_trace(path)


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
