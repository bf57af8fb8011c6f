"""Reads ``.npz`` traces."""

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vramkit.simulate._errors import TraceError
from vramkit.simulate._events import Action, RecordedEvents

_NUMBERS = ("action", "addr", "size", "stream")
_ARRAYS = (*_NUMBERS, "actions")
_CODES = {action.name.lower(): action for action in Action}
_OTHER_EVENT = 255

# 16 GiB hold 500 million events; more is a decompression bomb rather than a trace.
_MAX_UNPACKED_BYTES = 16 << 30

# What zipfile, zlib and NumPy's header parser raise on files that are damaged or hostile.
_UNREADABLE = (
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path) -> RecordedEvents:
    """Read the allocator events of an ``.npz`` trace; other events are skipped.

    Raises:
        TraceError: The file is damaged, an array is missing, or its values make no sense.
    """
    arrays = _load_arrays(path)
    _check_arrays(arrays)
    code_of_name = [_CODES.get(str(name), _OTHER_EVENT) for name in arrays["actions"]]
    code = np.array(code_of_name, dtype=np.uint8)[_action_indices(arrays)]
    index = np.flatnonzero(code != _OTHER_EVENT)
    return RecordedEvents(
        action=code[index],
        addr=arrays["addr"][index].astype(np.int64),
        size=arrays["size"][index].astype(np.int64),
        stream=arrays["stream"][index].astype(np.int64),
        index=index,
        standing=np.empty((0, 3), dtype=np.int64),
    )


def _load_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename for member in archive.infolist()}
            unpacked_bytes = sum(member.file_size for member in archive.infolist())
        _check_members(members, unpacked_bytes)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in _ARRAYS}
    except TraceError:
        raise
    except _UNREADABLE as err:
        raise TraceError(
            f"the archive is damaged or no NumPy archive ({type(err).__name__}: {err}); copy or "
            "record the trace again"
        ) from err


def _check_members(members: set[str], unpacked_bytes: int) -> None:
    missing = [name for name in _ARRAYS if f"{name}.npy" not in members]
    if missing:
        raise TraceError(
            f"the archive lacks the array {missing[0]!r}; a trace has {', '.join(_ARRAYS)} "
            f"(it holds {', '.join(sorted(members)[:8]) or 'nothing'})"
        )
    if unpacked_bytes > _MAX_UNPACKED_BYTES:
        raise TraceError(
            f"the archive unpacks to {unpacked_bytes:,} bytes, more than the "
            f"{_MAX_UNPACKED_BYTES:,} admitted; cut the trace into shorter ones"
        )


def _check_arrays(arrays: dict[str, NDArray[np.generic]]) -> None:
    length = arrays["action"].size
    for name in _NUMBERS:
        array = arrays[name]
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TraceError(
                f"the array {name!r} must hold integers in one dimension, it holds {array.dtype} "
                f"of shape {array.shape}"
            )
        if len(array) != length:
            raise TraceError(
                f"the array {name!r} has {len(array):,} entries, 'action' has {length:,}; a trace "
                "has one entry an event in each: record it again"
            )
    names = arrays["actions"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise TraceError(
            f"the array 'actions' must hold texts in one dimension, it holds {names.dtype} of "
            f"shape {names.shape}"
        )


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
