"""Hostile and damaged files are refused with status 2 and one line, in little time and memory."""

from pathlib import Path

import pytest
from fuzz_simulate import judge, time_limit
from helpers.hostile import HOSTILE, ROWS
from helpers.traces import write_npz

from vramkit.cli import main
from vramkit.errors import TraceError
from vramkit.simulate import load_trace


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, text = HOSTILE[name]
    path = tmp_path / "t.npz"
    write(path)
    assert judge(path) == (2, None)
    with time_limit(10):
        assert main(["simulate", str(path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"vramkit simulate: {path}: ")
    assert text in printed


def test_a_name_with_a_null_character_is_no_path() -> None:
    with pytest.raises(TraceError, match=r"a\\x00b: this is no path \(embedded null byte\)"):
        load_trace("a\0b")


def test_the_name_of_a_file_is_shown_without_escape_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "\x1b[2J\n.npz"
    path.write_bytes(b"text")
    assert main(["simulate", str(path)]) == 2
    printed = capsys.readouterr().err
    assert r"/\x1b[2J\n.npz: this is no trace" in printed
    assert printed.count("\n") == 1


def test_a_link_to_a_trace_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.npz").symlink_to(write_npz(tmp_path / "t.npz", ROWS))
    assert load_trace(tmp_path / "link.npz").block_count == 1


def test_too_little_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = tmp_path / "t.npz"
    path.write_bytes(b"PK")
    monkeypatch.setattr("vramkit.simulate._load.read_npz", fail)
    with pytest.raises(TraceError, match=r"reading it takes more memory than there is; record few"):
        load_trace(path)
