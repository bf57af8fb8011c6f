"""Finds out what kind of trace a file is, and reads it."""

from pathlib import Path

from vramkit.simulate._errors import TraceError
from vramkit.simulate._events import Events, RecordedEvents, normalise
from vramkit.simulate._npz import read_npz
from vramkit.simulate._snapshot import read_snapshot

_ZIP_MAGIC = b"PK"
_PICKLE_MAGIC = b"\x80"
_PICKLE_SUFFIXES = (".pickle", ".pkl")


def load_trace(path: str | Path, *, device: int | None = None) -> Events:
    """Read a trace: an ``.npz`` one, or a PyTorch memory snapshot.

    Args:
        path: The file; its content decides what it is.
        device: Which device's events to take from a snapshot of several.

    Raises:
        TraceError: The file cannot be read, is no trace, or holds no allocation.

    >>> load_trace("nowhere.npz")
    Traceback (most recent call last):
        ...
    vramkit.simulate._errors.TraceError: nowhere.npz: there is no such file; check the path
    """
    try:
        return _checked(normalise(_read(Path(path), device)))
    except TraceError as err:
        raise TraceError(f"{path}: {err}") from err
    except OSError as err:
        raise TraceError(f"{path}: {_reason(err)}; check the path") from err


def _checked(events: Events) -> Events:
    if not events.block_count:
        raise TraceError("the trace holds no allocation; record a loop that uses the device")
    return events


def _read(path: Path, device: int | None) -> RecordedEvents:
    with path.open("rb") as file:
        start = file.read(2)
    if start == _ZIP_MAGIC:
        if device not in (None, 0):
            raise TraceError(f"an .npz trace holds one device, number 0, not {device}")
        return read_npz(path)
    if start[:1] == _PICKLE_MAGIC or path.suffix in _PICKLE_SUFFIXES:
        return read_snapshot(path, device)
    found = "neither an .npz archive nor a pickle" if start else "empty"
    raise TraceError(
        f"this is no trace, it is {found}; give an .npz trace or a file written by "
        "torch.cuda.memory._dump_snapshot"
    )


def _reason(err: OSError) -> str:
    if isinstance(err, FileNotFoundError):
        return "there is no such file"
    if isinstance(err, IsADirectoryError):
        return "this is a directory, not a trace"
    return f"it cannot be read ({err.strerror or err})"
