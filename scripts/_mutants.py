"""Makes traces and snapshots, whole ones and damaged ones; the same ones for the same seed."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

_ACTIONS = ("alloc", "free_requested", "free_completed", "segment_alloc", "snapshot", "oom")
_BASE = 0x7F00_0000_0000
_MIB = 1 << 20


def make_input(seed: str) -> bytes:
    """Make one input: half of them snapshots, some of them without any damage."""
    rng = random.Random(seed)
    content = _snapshot(rng) if rng.random() < 0.5 else _archive(rng)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 5))):
        content = rng.choice(_BYTE_MUTATORS)(rng, content)
    return content


def make_options(seed: str) -> list[str]:
    """Choose options of ``vramkit simulate`` for an input."""
    choices = ([], [], ["--json"], ["--repeat-step", "3"], ["--min-capacity"], ["--capacity", "2x"])
    return list(random.Random(seed).choice(choices))


# A recording: a few blocks that come and go.


def _rows(rng: random.Random) -> list[tuple[str, int, int, int]]:
    rows: list[tuple[str, int, int, int]] = []
    live: list[tuple[int, int, int]] = []
    skipped = rng.choice(("", "", "", "free_requested", "free_completed", "alloc"))
    for number in range(rng.randrange(40)):
        if live and rng.random() < 0.4:
            block = live.pop(rng.randrange(len(live)))
            rows += [(action, *block) for action in _ACTIONS[1:3]]
        else:
            size = rng.choice((1, 512, 3000, 70_000, 3 * _MIB, 40 * _MIB))
            block = (_BASE + number * 64 * _MIB, size, rng.choice((0, 0, 7, 1 << 45)))
            live.append(block)
            rows.append(("alloc", *block))
        if rng.random() < 0.05:
            rows.append((rng.choice(_ACTIONS[3:]), _BASE, 2 * _MIB, 0))
    return [row for row in rows if row[0] != skipped]


# Snapshots: a tree of containers, some nodes of which are replaced.


def _snapshot(rng: random.Random) -> bytes:
    names = ("action", "addr", "size", "stream")
    devices = [_rows(rng) for _ in range(rng.choice((1, 1, 1, 2)))]
    traces = [[dict(zip(names, row, strict=True)) for row in rows] for rows in devices]
    for entry in traces[0]:
        if rng.random() < 0.1:
            entry["pool_id"] = rng.choice(((0, 0), (0, 1)))
    tree = {
        "segments": [_segment(rng, number) for number in range(rng.randrange(4))],
        "device_traces": traces,
        "allocator_settings": {"trace_alloc_overflowed": rng.random() < 0.2},
    }
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        _mutate_tree(rng, tree)
    return pickle.dumps(tree, protocol=rng.choice((2, 3, 4, 5)))


def _segment(rng: random.Random, number: int) -> dict[str, Any]:
    states = ("active_allocated", "inactive", "active_awaiting_free")
    blocks = [
        {"size": size, "requested_size": size - 1, "state": rng.choice(states)}
        for size in (rng.choice((512, 4096, 2 * _MIB)) for _ in range(rng.randrange(5)))
    ]
    pool = rng.choice(((0, 0), (0, 0), (0, 1)))
    address = _BASE + (number << 36)
    return {"address": address, "stream": 0, "segment_pool_id": pool, "blocks": blocks}


def _endless() -> list[Any]:
    value: list[Any] = []
    value += [value, value]
    return value


def _doubled() -> list[Any]:
    value: list[Any] = ["x"]
    for _ in range(60):
        value = [value, value]
    return value


def _nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(100):
        value = [value]
    return value


_NUMBERS = (0, -1, 1, 1 << 31, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64)
_ODD: tuple[Callable[[], Any], ...] = (
    *[lambda number=number: number for number in (*_NUMBERS, -(1 << 63), 1 << 600, -(1 << 2000))],
    *[lambda value=value: value for value in (None, True, 1.5, float("nan"), float("inf"), b"\0")],
    *[lambda text=text: text for text in ("", "active\x1b[2J\n", "alloc", "\ud800", "x" * 3000)],
    list,
    dict,
    tuple,
    _endless,
    _doubled,
    _nested,
)


def _mutate_tree(rng: random.Random, tree: Any) -> None:
    """Walk down a random way and change something where it ends."""
    node, parent, key = tree, None, None
    while isinstance(node, list | dict) and node and (parent is None or rng.random() < 0.85):
        parent = node
        key = rng.randrange(len(node)) if isinstance(node, list) else rng.choice(list(node))
        node = node[key]
    if parent is None:
        return
    kind = rng.randrange(5)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent += [node] * rng.choice((1, 2, 300))
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice(("\x1b[31m", "device", "pool_id", "segment_pool_id"))] = node
    elif kind == 3:
        parent[key] = rng.choice(list(tree.values())) if tree else None
    else:
        parent[key] = rng.choice(_ODD)()


# Archives: members of arrays, some with headers that lie.

_HEADERS = (
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }",
    "{'descr': '<U1', 'fortran_order': False, 'shape': (1099511627776,), }",
    "{'descr': '<U999999999', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (" + "9" * 800 + ",), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }",
    "{'descr': '<i8', 'fortran_order': True, 'shape': (2, 2), }",
    "{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '\x1b[2J', 'fortran_order': False, 'shape': (1,), }",
    "{1: 2, 'descr': '\\d', None: 0x, }",
    "[" * 900,
    "-" * 900 + "1",
    "1+" * 400 + "1j",
    "",
)


def _archive(rng: random.Random) -> bytes:
    rows = _rows(rng)
    kinds = ("<i8", "<i8", ">i8", "<u8", "<i4", "<i2")
    columns: dict[str, Any] = {
        "action": np.array([_ACTIONS.index(row[0]) for row in rows], dtype="|u1"),
        "actions": np.array(_ACTIONS),
    }
    for number, name in enumerate(("addr", "size", "stream"), start=1):
        column = np.array([row[number] for row in rows], dtype=np.int64)
        if len(column) and rng.random() < 0.15:
            column[rng.randrange(len(column))] = rng.choice([n for n in _NUMBERS if n < 1 << 63])
        columns[name] = column.astype(rng.choice(kinds) if rng.random() < 0.1 else "<i8")
    members = [(f"{name}.npy", _npy(rng, array)) for name, array in columns.items()]
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        _mutate_members(rng, members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) * 6
            info.compress_type = rng.choice((*methods, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
            archive.writestr(info, content)
    return buffer.getvalue()


def _npy(rng: random.Random, array: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=rng.choice(((1, 0), (1, 0), (2, 0))))
    if rng.random() < 0.95:
        return buffer.getvalue()
    header = rng.choice(_HEADERS).encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes()


def _mutate_members(rng: random.Random, members: list[tuple[str, bytes]]) -> None:
    at = rng.randrange(len(members))
    name, content = members[at]
    renamed = rng.choice(("\x1b[2J.npy", name.removesuffix(".npy"), "action.npy", "../../x.npy"))
    kind = rng.randrange(4)
    if kind == 0 and len(members) > 1:
        del members[at]
    elif kind == 1 and renamed not in (other for other, _ in members):
        members[at] = (renamed, content)
    elif kind == 2:
        members[at] = (name, rng.randbytes(rng.choice((0, 5, 200))))
    else:
        members[at] = (name, _any_byte_mutator(rng, content))


# Bytes.


def _overwrite(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    number = rng.choice((*_NUMBERS, rng.getrandbits(64))) % (1 << 64)
    patch = struct.pack("<Q", number)[: rng.choice((1, 1, 2, 4, 8))]
    return content[:at] + patch + content[at + len(patch) :]


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20)) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    begin, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    return content[:begin] + content[end:] if rng.random() < 0.5 else content[:begin]


def _repeat(rng: random.Random, content: bytes) -> bytes:
    begin, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    return content[:end] + content[begin:end] * rng.choice((1, 2, 30)) + content[end:]


def _insert(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    pieces = (b"(", b"]", b"}", b"h\0", b"\x94", b"0", b"t", b"e", b"u", b"PK\x01\x02", b"\0")
    return content[:at] + rng.choice(pieces) * rng.choice((1, 2, 1000)) + content[at:]


_BYTE_MUTATORS = (_overwrite, _flip, _flip, _cut, _repeat, _insert)


def _any_byte_mutator(rng: random.Random, content: bytes) -> bytes:
    return rng.choice(_BYTE_MUTATORS)(rng, content)
