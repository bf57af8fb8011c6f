from pathlib import Path

from vramkit.simulate import _limits, _npy, _npz, _repeat

DOCUMENT = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text(encoding="utf-8")


def test_the_document_states_the_limits() -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("|")]
    for what, value in (
        ("the file", f"{_limits.MAX_FILE_BYTES >> 30} GiB"),
        ("events of a device", f"{_limits.MAX_EVENTS:,}"),
        ("streams", f"{_limits.MAX_STREAMS:,}"),
        ("names in", f"{_limits.MAX_ACTIONS}, {_limits.MAX_ACTION_CHARACTERS}"),
        ("lists, dicts, tuples and texts", f"{_limits.MAX_OBJECTS:,}"),
        ("values of a snapshot that wait", f"{_limits.MAX_OPEN_VALUES:,}"),
        (
            "the header of an array",
            f"{_npy._MAX_HEADER_BYTES >> 10} KiB; {_npz._MAX_READ_BYTES >> 20} MiB",
        ),
        ("events under `--repeat-step`", f"{_repeat._MAX_EVENTS:,}"),
    ):
        [row] = [row for row in rows if row.startswith(f"| {what}")]
        assert row.split("|")[2].strip() == value
