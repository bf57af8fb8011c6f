from pathlib import Path

import pytest
from helpers.traces import TRACES, live_curve, write_npz

from vramkit.errors import TraceError
from vramkit.simulate import load_trace

# Table of the recorded traces: most requested bytes live at once.
PEAKS = {
    "gnn_sampled": 12_593_456_192,
    "llama_ckpt": 10_900_116_976,
    "offload_streams": 8_280_431_348,
    "resnet_multiscale": 12_019_768_336,
    "resnet_prefetch": 9_818_021_392,
    "unet_tiles": 7_976_468_660,
}


def test_all_recorded_traces_are_there() -> None:
    assert {path.stem for path in TRACES} == set(PEAKS)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_recorded_traces_have_the_stated_peak(path: Path) -> None:
    events = load_trace(path)
    assert events.peak_live_bytes == PEAKS[path.stem]
    assert events.live_bytes.tolist() == live_curve(events)
    assert events.standing_blocks == 0


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.npz: there is no such file; check the path"):
        load_trace(tmp_path / "none.npz")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="this is a directory, not a trace"):
        load_trace(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "empty"), (b"hello", "neither an .npz archive nor a pickle"), (b"\x93NUMPY", "neither")],
)
def test_other_files(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=f"this is no trace, it is {found}.*_dump_snapshot"):
        load_trace(path)


def test_a_pickle_of_an_old_protocol_is_read_as_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "t.pickle"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(TraceError, match="the pickle is refused: byte 0: instruction GLOBAL"):
        load_trace(path)


def test_a_trace_without_allocations(tmp_path: Path) -> None:
    for rows in ([], [("segment_alloc", 64, 1, 0)], [("alloc", 64, 0, 0)]):
        with pytest.raises(TraceError, match="the trace holds no allocation"):
            load_trace(write_npz(tmp_path / "t.npz", rows))
