"""Reads ``.npz`` traces."""

import struct
import sys
import zipfile
import zlib
from collections import Counter
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vramkit.errors import TraceError
from vramkit.simulate._events import Action, RecordedEvents
from vramkit.simulate._limits import MAX_ACTION_CHARACTERS, MAX_ACTIONS, MAX_EVENTS
from vramkit.simulate._npy import NpyError, read_npy
from vramkit.simulate._text import one_line

_NUMBERS = ("action", "addr", "size", "stream")
_ARRAYS = (*_NUMBERS, "actions")
_CODES = {action.name.lower(): action for action in Action}
_OTHER_EVENT = 255

# What NumPy writes. The other methods unpack without a bound on what comes out at once, and LZMA
# takes a dictionary as large as the file says.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Arrays are read in pieces; only the list of an archive's members is read at once. So much holds
# ten thousand of them.
_MAX_READ_BYTES = 1 << 20

# What zipfile and zlib raise on files that are damaged or hostile.
_UNREADABLE = (
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(file: BinaryIO) -> RecordedEvents:
    """Read the allocator events of an ``.npz`` trace; other events are skipped.

    Raises:
        TraceError: The file is damaged, an array is missing, or its values make no sense.
    """
    arrays = _load_arrays(file)
    _check_arrays(arrays)
    code = np.array(_codes_of_names(arrays["actions"]), dtype=np.uint8)[_action_indices(arrays)]
    index = np.flatnonzero(code != _OTHER_EVENT)
    return RecordedEvents(
        action=code[index],
        addr=arrays["addr"][index].astype(np.int64),
        size=arrays["size"][index].astype(np.int64),
        stream=arrays["stream"][index].astype(np.int64),
        index=index,
        standing=np.empty((0, 3), dtype=np.int64),
    )


def _codes_of_names(names: NDArray[np.generic]) -> list[int]:
    # NumPy makes a SystemError of what is no character.
    numbers = np.frombuffer(names.tobytes(), np.dtype("u4").newbyteorder(names.dtype.byteorder))
    if numbers.max(initial=0) > sys.maxunicode:
        raise TraceError(
            "the array 'actions' holds what is no text; copy or record the trace again"
        )
    return [_CODES.get(name, _OTHER_EVENT) for name in names.tolist()]


class _InPieces:
    """A file that refuses to read much at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, size: int = -1, /) -> bytes:
        if 0 <= size <= _MAX_READ_BYTES:
            return self._file.read(size)
        content = self._file.read(_MAX_READ_BYTES + 1)
        if len(content) > _MAX_READ_BYTES:
            raise zipfile.BadZipFile(f"its list of members exceeds {_MAX_READ_BYTES:,} bytes")
        return content


def _load_arrays(file: BinaryIO) -> dict[str, NDArray[np.generic]]:
    try:
        with zipfile.ZipFile(_InPieces(file)) as archive:
            members = _choose_members(archive.infolist())
            return {name: _load_array(archive, name, members[name]) for name in _ARRAYS}
    except TraceError:
        raise
    except _UNREADABLE as err:
        raise TraceError(
            f"the archive is damaged or no NumPy archive ({type(err).__name__}: {err}); copy or "
            "record the trace again"
        ) from err


def _choose_members(members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    count = Counter(member.filename for member in members)
    for name in _ARRAYS:
        if count[f"{name}.npy"] == 0:
            held = ", ".join(one_line(member, limit=40) for member in sorted(count)[:8])
            raise TraceError(
                f"the archive lacks the array {name!r}; a trace has {', '.join(_ARRAYS)} "
                f"(it holds {held or 'nothing'})"
            )
        if count[f"{name}.npy"] > 1:
            raise TraceError(
                f"the archive holds the array {name!r} {count[f'{name}.npy']:,} times; which one "
                "is meant cannot be known: record the trace again"
            )
    by_file_name = {member.filename: member for member in members}
    return {name: by_file_name[f"{name}.npy"] for name in _ARRAYS}


def _load_array(
    archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo
) -> NDArray[np.generic]:
    if member.compress_type not in _METHODS:
        raise TraceError(
            f"the array {name!r} is packed by method {member.compress_type}; only stored and "
            "deflated arrays are read, as numpy.savez and numpy.savez_compressed write them"
        )
    limit = MAX_ACTIONS if name == "actions" else MAX_EVENTS
    try:
        with archive.open(member) as file:
            return read_npy(
                file, size_bytes=member.file_size, limit=limit, characters=MAX_ACTION_CHARACTERS
            )
    except NpyError as err:
        raise TraceError(
            f"the array {name!r} is refused: {err}; cut the trace into shorter ones or record it "
            "again"
        ) from err


def _check_arrays(arrays: dict[str, NDArray[np.generic]]) -> None:
    length = arrays["action"].size
    for name in _NUMBERS:
        array = arrays[name]
        if array.dtype.kind not in "iu":
            raise TraceError(f"the array {name!r} must hold integers, it holds {array.dtype}")
        if len(array) != length:
            raise TraceError(
                f"the array {name!r} has {len(array):,} entries, 'action' has {length:,}; a trace "
                "has one entry an event in each: record it again"
            )
    names = arrays["actions"]
    if names.dtype.kind != "U":
        raise TraceError(f"the array 'actions' must hold texts, it holds {names.dtype}")


def _action_indices(arrays: dict[str, NDArray[np.generic]]) -> NDArray[np.int64]:
    indices: NDArray[np.int64] = arrays["action"].astype(np.int64)
    count = len(arrays["actions"])
    unknown = np.flatnonzero((indices < 0) | (indices >= count))
    if len(unknown):
        at = unknown[0]
        raise TraceError(
            f"event {at}: action {indices[at]} is unknown, 'actions' names 0 to {count - 1}; the "
            "arrays are of different traces"
        )
    return indices
