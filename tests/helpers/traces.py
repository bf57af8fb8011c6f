"""Writes small traces, and models them with plain dictionaries."""

import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vramkit.simulate import Events

TRACES = sorted((Path(__file__).parents[2] / "benchmarks" / "traces").glob("*.npz"))

ACTIONS = [
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "snapshot",
    "oom",
]

# (action, addr, size, stream)
Row = tuple[str, int, int, int]


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def outcome_of(function: Callable[[], bool]) -> bool | type[BaseException]:
    """What a function returns, or the type of its exception."""
    try:
        return function()
    except Exception as err:  # noqa: BLE001 - which one it is, the caller asserts
        return type(err)


def write_npz(path: Path, rows: Sequence[Row], **replaced: Any) -> Path:
    """Write rows as an ``.npz`` trace; arrays of that name are replaced, or left out by None."""
    arrays: dict[str, Any] = {
        "action": np.array([ACTIONS.index(row[0]) for row in rows], dtype=np.uint8),
        "addr": np.array([row[1] for row in rows], dtype=np.int64),
        "size": np.array([row[2] for row in rows], dtype=np.int64),
        "stream": np.array([row[3] for row in rows], dtype=np.int32),
        "time_us": np.arange(len(rows)),
        "actions": np.array(ACTIONS),
    }
    arrays.update(replaced)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def snapshot_of(
    *devices: Sequence[Row], segments: Iterable[Any] = (), **settings: Any
) -> dict[str, Any]:
    """A snapshot as PyTorch 2.x writes it, with the events of each device."""
    frames = [{"name": "step", "filename": "train.py", "line": 7}]
    traces = [
        [
            {
                "action": action,
                "addr": addr,
                "size": size,
                "stream": stream,
                "time_us": 1_760_000_000_000_000 + number,
                "compile_context": "N/A",
                "user_metadata": "",
                "frames": frames,
            }
            for number, (action, addr, size, stream) in enumerate(rows)
        ]
        for rows in devices
    ]
    return {
        "segments": list(segments),
        "device_traces": traces,
        "allocator_settings": {
            "max_split_size": -1,
            "roundup_power2_divisions": {"1": 0},
            **settings,
        },
        "external_annotations": [],
    }


def write_snapshot(path: Path, *devices: Sequence[Row], segments: Iterable[Any] = ()) -> Path:
    """Write such a snapshot to a file, as ``torch.cuda.memory._dump_snapshot`` does."""
    path.write_bytes(pickle.dumps(snapshot_of(*devices, segments=segments)))
    return path


def live_curve(events: Events) -> list[int]:
    """Live bytes after each event by a dictionary of live blocks; asserts that events fit."""
    live: dict[int, tuple[int, int]] = {}
    seen: set[int] = set()
    total, curve = 0, []
    columns = (events.op, events.block_id, events.size_bytes, events.stream)
    for op, block, size, stream in zip(*(column.tolist() for column in columns), strict=True):
        if op == 0:
            assert block not in seen, f"block {block} is allocated twice"
            seen.add(block)
            live[block] = (size, stream)
            total += size
        else:
            assert live.pop(block) == (size, stream), f"block {block} changed"
            total -= size
        curve.append(total)
    assert seen == set(range(events.block_count))
    return curve


def events_of(blocks: Sequence[int], *, sizes: Sequence[int], stream: int = 0) -> Events:
    """Events from block ids: an id's first place allocates it, its second frees it."""
    block_id = np.array(blocks, dtype=np.int64)
    op = np.ones(len(blocks), dtype=np.uint8)
    op[np.unique(block_id, return_index=True)[1]] = 0
    return Events(
        op=op,
        block_id=block_id,
        size_bytes=np.array(sizes, dtype=np.int64)[block_id],
        stream=np.full(len(blocks), stream, dtype=np.int32),
        index=np.arange(len(blocks)),
        block_count=len(sizes),
        standing_blocks=0,
    )
