"""Reads PyTorch memory snapshots (``torch.cuda.memory._dump_snapshot``)."""

import enum
import os
from array import array
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vramkit.errors import TraceError
from vramkit.simulate._events import Action, Int64, RecordedEvents
from vramkit.simulate._fields import check_unshared, field, is_private, size, unsigned
from vramkit.simulate._history import History
from vramkit.simulate._limits import MAX_EVENTS
from vramkit.simulate._plain_pickle import PlainPickleError, load_plain
from vramkit.simulate._segments import Picture, read_picture
from vramkit.simulate._text import one_line
from vramkit.units import counted

_SEGMENT_COMES, _SEGMENT_GOES = 100, 101
_CODES = {
    **{action.name.lower(): int(action) for action in Action},
    "segment_alloc": _SEGMENT_COMES,
    "segment_map": _SEGMENT_COMES,
    "segment_free": _SEGMENT_GOES,
    "segment_unmap": _SEGMENT_GOES,
}
_EVENTS = {action.name.lower() for action in Action}
_RECORD_HINT = (
    "call torch.cuda.memory._record_memory_history(max_entries=10_000_000) before the loop and "
    "torch.cuda.memory._dump_snapshot(path) after it"
)


def read_snapshot(file: BinaryIO, device: int | None) -> History:
    """Read the allocator events of one device of a snapshot; other events are skipped.

    Args:
        file: A pickle that ``torch.cuda.memory._dump_snapshot`` wrote.
        device: Number of the device; ``None`` takes the only one that has events.

    Raises:
        TraceError: The pickle holds more than plain containers and scalars, is no snapshot, or
            does not say which device is meant.
    """
    snapshot = _load(file)
    traces = field(snapshot, "device_traces", list, "the snapshot")
    ordinal = _choose_device(traces, device)
    # Snapshots always have segments; a file that somebody cut down may not.
    picture = read_picture(snapshot["segments"], ordinal) if "segments" in snapshot else None
    columns = _columns(traces[ordinal], ordinal)
    private = _is_private(columns, picture)
    is_event = columns.code < _SEGMENT_COMES
    nothing = np.empty((0, 3), dtype=np.int64)
    return History(
        events=_select(columns, is_event & ~private, picture.live if picture else nothing),
        private=_select(columns, is_event & private, picture.private_live if picture else nothing),
        picture=picture,
        most_reserved_bytes=_most_reserved_bytes(columns, private, picture),
        overflowed=_overflowed(snapshot),
    )


class _Pool(enum.IntEnum):
    SHARED = 0
    PRIVATE = 1
    UNKNOWN = 2  # entries of old versions do not say


@dataclass(frozen=True)
class _Columns:
    """The events of one device, those of segments too: one array entry each.

    Attributes:
        code: One of ``_CODES``.
        pool: A :class:`_Pool`.
    """

    code: NDArray[np.uint8]
    addr: Int64
    size: Int64
    stream: Int64
    index: Int64
    pool: NDArray[np.uint8]


def _load(file: BinaryIO) -> dict[str, Any]:
    try:
        # What grows meanwhile is not waited for; memory is taken for the number that is given.
        snapshot = load_plain(file.read(os.fstat(file.fileno()).st_size))
    except PlainPickleError as err:
        raise TraceError(
            f"the pickle is refused: {err}. Give a file written by "
            "torch.cuda.memory._dump_snapshot, or an .npz trace"
        ) from err
    if type(snapshot) is not dict or "device_traces" not in snapshot:
        raise TraceError(
            "the pickle is no PyTorch memory snapshot: it is not a dict with 'device_traces'; "
            + _RECORD_HINT
        )
    return snapshot


def _choose_device(traces: list[Any], device: int | None) -> int:
    _check_traces(traces)
    counts = {
        ordinal: count
        for ordinal in range(len(traces))
        if (count := sum(1 for entry in traces[ordinal] if entry["action"] in _EVENTS))
    }
    if not counts:
        raise TraceError(f"the snapshot holds no allocator events: {_RECORD_HINT}")
    held = ", ".join(f"{ordinal} ({counted(count, 'event')})" for ordinal, count in counts.items())
    held = one_line(held, limit=200)
    if device is None and len(counts) > 1:
        raise TraceError(f"the snapshot holds events of devices {held}; choose one by --device N")
    if device is not None and device not in counts:
        raise TraceError(f"the snapshot holds no events of device {device}, but of {held}")
    return next(iter(counts)) if device is None else device


def _check_traces(traces: list[Any]) -> None:
    for ordinal, trace in enumerate(traces):
        if type(trace) is not list:
            raise TraceError(f"device_traces[{ordinal}] is a {type(trace).__name__}, not a list")
        if len(trace) > MAX_EVENTS:
            raise TraceError(
                f"device {ordinal} has {len(trace):,} events, more than the {MAX_EVENTS:,} "
                "admitted; record fewer steps, or with a smaller max_entries"
            )
    check_unshared(traces, "the traces of devices")
    for ordinal, trace in enumerate(traces):
        for index, entry in enumerate(trace):
            if type(entry) is not dict or type(entry.get("action")) is not str:
                raise TraceError(
                    f"event {index} of device {ordinal} is not a dict with an 'action'"
                )


def _columns(trace: list[dict[str, Any]], ordinal: int) -> _Columns:
    code, pool = array("B"), array("B")
    addr, byte_count, stream, index = array("Q"), array("q"), array("Q"), array("q")
    for number, entry in enumerate(trace):
        if entry["action"] not in _CODES:
            continue
        where = f"event {number} of device {ordinal}"
        code.append(_CODES[entry["action"]])
        addr.append(unsigned(entry, "addr", where))
        byte_count.append(size(entry, "size", where))
        stream.append(unsigned(entry, "stream", where))
        index.append(number)
        pool.append(_pool_of(entry, where))
    return _Columns(
        code=np.array(code, dtype=np.uint8),
        # Addresses and streams are unsigned; as identities they may wrap.
        addr=np.array(addr, dtype=np.uint64).view(np.int64),
        size=np.array(byte_count, dtype=np.int64),
        stream=np.array(stream, dtype=np.uint64).view(np.int64),
        index=np.array(index, dtype=np.int64),
        pool=np.array(pool, dtype=np.uint8),
    )


def _pool_of(entry: dict[str, Any], where: str) -> _Pool:
    if "pool_id" not in entry:
        return _Pool.UNKNOWN
    return _Pool.PRIVATE if is_private(entry, "pool_id", where) else _Pool.SHARED


def _is_private(columns: _Columns, picture: Picture | None) -> NDArray[np.bool_]:
    """Whether each event is of a private pool; where it does not say, the segments do."""
    private: NDArray[np.bool_] = columns.pool == _Pool.PRIVATE
    if picture is None or not len(picture.private_ranges):
        return private
    ranges = picture.private_ranges.view(np.uint64)
    ranges = ranges[np.argsort(ranges[:, 0])]
    addresses = columns.addr.view(np.uint64)
    at = np.searchsorted(ranges[:, 0], addresses, side="right")
    first, byte_count = ranges[np.maximum(at, 1) - 1].T
    inside = (at > 0) & (addresses - first < byte_count)
    private |= (columns.pool == _Pool.UNKNOWN) & inside
    return private


def _select(columns: _Columns, mask: NDArray[np.bool_], standing: Int64) -> RecordedEvents:
    return RecordedEvents(
        action=columns.code[mask],
        addr=columns.addr[mask],
        size=columns.size[mask],
        stream=columns.stream[mask],
        index=columns.index[mask],
        standing=standing,
    )


def _most_reserved_bytes(
    columns: _Columns, private: NDArray[np.bool_], picture: Picture | None
) -> int:
    """Most bytes of segments at once: what the picture has, and back from there."""
    if picture is None:
        return 0
    changes = columns.size.astype(np.float64)
    changes[columns.code == _SEGMENT_GOES] *= -1
    changes[(columns.code < _SEGMENT_COMES) | private] = 0
    before = picture.reserved_bytes - np.cumsum(changes[::-1])
    return int(before.max(initial=picture.reserved_bytes))


def _overflowed(snapshot: dict[str, Any]) -> bool:
    settings = snapshot.get("allocator_settings")
    return type(settings) is dict and settings.get("trace_alloc_overflowed") is True
