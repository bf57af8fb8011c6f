"""Reads PyTorch memory snapshots (``torch.cuda.memory._dump_snapshot``)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vramkit.simulate._errors import TraceError
from vramkit.simulate._events import Action, RecordedEvents
from vramkit.simulate._plain_pickle import PlainPickleError, load_plain
from vramkit.units import counted

# Each byte of a pickle can become some 60 bytes of objects.
_MAX_FILE_BYTES = 2 << 30

_CODES = {action.name.lower(): int(action) for action in Action}
_RECORD_HINT = (
    "call torch.cuda.memory._record_memory_history(max_entries=10_000_000) before the loop and "
    "torch.cuda.memory._dump_snapshot(path) after it"
)


def read_snapshot(path: Path, device: int | None) -> RecordedEvents:
    """Read the allocator events of one device of a snapshot; other events are skipped.

    Args:
        path: A pickle that ``torch.cuda.memory._dump_snapshot`` wrote.
        device: Number of the device; ``None`` takes the only one that has events.

    Raises:
        TraceError: The pickle holds more than plain containers and scalars, is no snapshot, or
            does not say which device is meant.
    """
    snapshot = _load(path)
    traces = _field(snapshot, "device_traces", list, "the snapshot")
    ordinal = _choose_device(traces, device)
    rows = np.array(list(_rows(traces[ordinal], ordinal)), dtype=np.int64).reshape(-1, 5)
    standing = list(_standing_rows(snapshot.get("segments", []), ordinal))
    return RecordedEvents(
        action=rows[:, 0].astype(np.uint8),
        addr=rows[:, 1].copy(),
        size=rows[:, 2].copy(),
        stream=rows[:, 3].copy(),
        index=rows[:, 4].copy(),
        standing=np.array(standing, dtype=np.int64).reshape(-1, 3),
    )


def _load(path: Path) -> dict[str, Any]:
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_FILE_BYTES:
        raise TraceError(
            f"the snapshot has {size_bytes:,} bytes, more than the {_MAX_FILE_BYTES:,} admitted; "
            "record with stacks='python' or context=None, or fewer entries"
        )
    try:
        snapshot = load_plain(path.read_bytes())
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
    counts = {
        ordinal: count
        for ordinal in range(len(traces))
        if (count := sum(1 for _ in _relevant(traces[ordinal], ordinal)))
    }
    if not counts:
        raise TraceError(f"the snapshot holds no allocator events: {_RECORD_HINT}")
    held = ", ".join(f"{ordinal} ({counted(count, 'event')})" for ordinal, count in counts.items())
    if device is None and len(counts) > 1:
        raise TraceError(f"the snapshot holds events of devices {held}; choose one by --device N")
    if device is not None and device not in counts:
        raise TraceError(f"the snapshot holds no events of device {device}, but of {held}")
    return next(iter(counts)) if device is None else device


def _relevant(trace: object, ordinal: int) -> Iterator[tuple[int, dict[str, Any]]]:
    if type(trace) is not list:
        raise TraceError(f"device_traces[{ordinal}] is a {type(trace).__name__}, not a list")
    for index, entry in enumerate(trace):
        if type(entry) is not dict or type(entry.get("action")) is not str:
            raise TraceError(f"event {index} of device {ordinal} is not a dict with an 'action'")
        if entry["action"] in _CODES:
            yield index, entry


def _rows(trace: object, ordinal: int) -> Iterator[tuple[int, ...]]:
    for index, entry in _relevant(trace, ordinal):
        where = f"event {index} of device {ordinal}"
        fields = (_integer(entry, name, where) for name in ("addr", "size", "stream"))
        yield (_CODES[entry["action"]], *fields, index)


def _standing_rows(segments: object, ordinal: int) -> Iterator[tuple[int, int, int]]:
    """The blocks that are live at the end, by the snapshot's own picture of the memory."""
    if type(segments) is not list:
        raise TraceError("the snapshot's 'segments' is not a list")
    for number, segment in enumerate(segments):
        where = f"segment {number}"
        if type(segment) is not dict:
            raise TraceError(f"{where} is a {type(segment).__name__}, not a dict")
        if segment.get("device", ordinal) == ordinal:
            yield from _live_blocks(segment, where)


def _live_blocks(segment: dict[str, Any], where: str) -> Iterator[tuple[int, int, int]]:
    stream = _integer(segment, "stream", where)
    address = _integer(segment, "address", where)
    for block in _field(segment, "blocks", list, where):
        if type(block) is not dict:
            raise TraceError(f"a block of {where} is not a dict")
        size = _integer(block, "size", where)
        # Blocks carry their address since torch 2.1, and their requested size since 2.0.
        address = _integer(block, "address", where) if "address" in block else address
        if str(block.get("state", "")).startswith("active"):
            named = "requested_size" if "requested_size" in block else "size"
            yield address, _integer(block, named, where), stream
        address += size


def _field(container: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = container.get(name)
    if type(value) is not kind:
        raise TraceError(
            f"{where} has no {kind.__name__} {name!r}; the file is damaged or of an unknown version"
        )
    return value


def _integer(container: dict[str, Any], name: str, where: str) -> int:
    value = int(_field(container, name, int, where))
    if not -(1 << 63) <= value < 1 << 64:
        raise TraceError(f"{where}: {name} {value:#x} does not fit in 64 bits")
    # Addresses and stream handles are unsigned; as identities they may wrap.
    return value - (1 << 64) if value >= 1 << 63 else value
