"""Finds out what kind of trace a file is, and reads it."""

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from vramkit.errors import TraceError
from vramkit.simulate._events import Events
from vramkit.simulate._history import History, to_events
from vramkit.simulate._npz import read_npz
from vramkit.simulate._open import open_regular
from vramkit.simulate._snapshot import read_snapshot
from vramkit.simulate._text import one_line

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
    vramkit.errors.TraceError: nowhere.npz: there is no such file; check the path
    """
    try:
        with open_regular(Path(path)) as file:
            history = _read(file, Path(path).suffix, device)
        events = _checked(to_events(history))
        return replace(events, notes=tuple(map(one_line, events.notes)))
    except TraceError as err:
        raise _error(path, str(err)) from err
    except OSError as err:
        raise _error(path, f"{_reason(err)}; check the path") from err
    except MemoryError as err:
        raise _error(
            path, "reading it takes more memory than there is; record fewer events"
        ) from err


def _error(path: str | Path, text: str) -> TraceError:
    """The one place where an error's text leaves; parts of it come from the file."""
    return TraceError(f"{one_line(str(path), limit=4096)}: {one_line(text)}")


def _checked(events: Events) -> Events:
    if not events.block_count and events.private_blocks:
        raise TraceError(
            f"all {events.private_blocks:,} blocks are in private pools, of CUDA graphs or "
            "torch.cuda.MemPool, which a vramkit pool does not serve; record a loop without them"
        )
    if not events.block_count:
        raise TraceError("the trace holds no allocation; record a loop that uses the device")
    return events


def _read(file: BinaryIO, suffix: str, device: int | None) -> History:
    start = file.read(2)
    file.seek(0)
    if start == _ZIP_MAGIC:
        if device not in (None, 0):
            raise TraceError(f"an .npz trace holds one device, number 0, not {device}")
        return History(events=read_npz(file))
    if start[:1] == _PICKLE_MAGIC or suffix in _PICKLE_SUFFIXES:
        return read_snapshot(file, device)
    found = "neither an .npz archive nor a pickle" if start else "empty"
    raise TraceError(
        f"this is no trace, it is {found}; give an .npz trace or a file written by "
        "torch.cuda.memory._dump_snapshot"
    )


def _reason(err: OSError) -> str:
    if isinstance(err, FileNotFoundError):
        return "there is no such file"
    return f"it cannot be read ({err.strerror or err})"
