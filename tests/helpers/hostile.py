"""Writes hostile and damaged trace files: each once broke ``vramkit simulate``, or could."""

import io
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from helpers.traces import Row, snapshot_of, write_npz

Writer = Callable[[Path], object]

ROWS: list[Row] = [("alloc", 64, 100, 0), ("free_completed", 64, 100, 0)]
_ARRAYS = ("action", "addr", "size", "stream", "actions")


def _pickled(value: Any) -> Writer:
    return lambda path: path.write_bytes(pickle.dumps(value))


def _endless() -> list[Any]:
    """A list that contains itself, and holds itself 2**60 times besides; 500 bytes of a pickle."""
    innermost: list[Any] = []
    innermost.append(innermost)
    value = innermost
    for _ in range(60):
        value = [value, value]
    return value


def _block(**replaced: Any) -> dict[str, Any]:
    return {"size": 512, "requested_size": 500, "state": "active_allocated", **replaced}


def _segment(*blocks: Any, **replaced: Any) -> dict[str, Any]:
    return {"device": 0, "address": 1 << 40, "stream": 0, "blocks": list(blocks), **replaced}


def _snapshot(*segments: Any, **entry: Any) -> dict[str, Any]:
    first = {"action": "alloc", "addr": 64, "size": 100, "stream": 0, **entry}
    return {"segments": list(segments), "device_traces": [[first]]}


def _shared_segment(count: int) -> dict[str, Any]:
    blocks = [_block()] * count
    return _snapshot(*[_segment(*blocks)] * count)


def _shared_blocks(count: int) -> dict[str, Any]:
    blocks = [_block()] * count
    segments = [_segment() for _ in range(count)]
    for segment in segments:
        segment["blocks"] = blocks
    return _snapshot(*segments)


def _shared_traces(count: int) -> dict[str, Any]:
    return {"device_traces": [_snapshot()["device_traces"][0] * count] * count}


# Archives.


def _header(descr: str, shape: str, *, version: bytes = b"\1\0", length: str = "<H") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + struct.pack(length, len(text)) + text


def _members(path: Path) -> dict[str, bytes]:
    write_npz(path, ROWS)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _replaced(name: str, content: bytes, *, method: int = zipfile.ZIP_DEFLATED) -> Writer:
    """A good archive in which one array is replaced."""

    def write(path: Path) -> None:
        members = _members(path) | {f"{name}.npy": content}
        with zipfile.ZipFile(path, "w", method) as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    return write


def _corrupt(method: int) -> Writer:
    """A good archive packed by that method, with rubbish in the middle of the first member."""

    def write(path: Path) -> None:
        members = _members(path)
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
            first = archive.infolist()[0]
        content = bytearray(path.read_bytes())
        begin = first.header_offset + 30 + len(first.filename)
        content[begin : begin + first.compress_size] = b"\xff" * first.compress_size
        path.write_bytes(content)

    return write


def _renamed(names: dict[str, str]) -> Writer:
    """A good archive in which members have other names; the same one twice may come out."""

    def write(path: Path) -> None:
        members = _members(path)
        stand_ins = {name: f"{'_' * len(new)}" for name, new in names.items()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members.items():
                archive.writestr(stand_ins.get(name, name), data)
        content = buffer.getvalue()
        # zipfile warns about names that it writes twice.
        for name, new in names.items():
            content = content.replace(stand_ins[name].encode(), new.encode())
        path.write_bytes(content)

    return write


def _many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(6000):
            archive.writestr(f"{number:0200}", b"")


def _many_events(path: Path) -> None:
    """20 million events in a few kB; once 200 million in 779 kB were read."""
    count = 20_000_000
    actions = _members(path)["actions.npy"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("actions.npy", actions)
        for name in _ARRAYS[:4]:
            archive.writestr(f"{name}.npy", _header("|u1", f"({count},)") + bytes(count))


def _many_streams(path: Path) -> None:
    rows: list[Row] = [("alloc", 64 * number, 100, number) for number in range(1, 20_001)]
    path.write_bytes(pickle.dumps(snapshot_of(rows)))


def _long_header(path: Path) -> None:
    """An array whose header has 64 MiB of spaces, which deflate to 64 kB."""
    text = b" " * (64 << 20)
    content = b"\x93NUMPY\2\0" + struct.pack("<I", len(text)) + text
    _replaced("addr", content)(path)


def _encrypted(path: Path) -> None:
    content = bytearray(write_npz(path, ROWS).read_bytes())
    entry = content.index(b"PK\1\2")
    content[6] |= 1
    content[entry + 8] |= 1
    path.write_bytes(content)


# What is no regular file, or too large a one.


def _fifo_behind_a_link(path: Path) -> None:
    os.mkfifo(path.with_suffix(".fifo"))
    path.symlink_to(path.with_suffix(".fifo"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"PK")
        file.truncate(3 << 30)


# Each name with what writes the file and what the command says about it.
HOSTILE: dict[str, tuple[Writer, str]] = {
    "endless-state": (
        _pickled(_snapshot(_segment(_block(state=_endless())))),
        "a block of segment 0 has no str 'state'",
    ),
    "endless-size": (_pickled(_snapshot(size=_endless())), "event 0 of device 0 has no int 'size'"),
    "endless-action": (_pickled(_snapshot(action=_endless())), "is not a dict with an 'action'"),
    "endless-pool": (
        _pickled(_snapshot(pool_id=(_endless(), _endless()))),
        "pool_id is no pair of integers",
    ),
    "endless-device": (
        _pickled(_snapshot(_segment(device=_endless()))),
        "segment 0 has no int 'device'",
    ),
    "endless-traces": (_pickled({"device_traces": _endless()}), "one and the same list, several"),
    "endless-snapshot": (_pickled(_endless()), "no PyTorch memory snapshot"),
    "shared-segment": (_pickled(_shared_segment(3000)), "one and the same list, several times"),
    "shared-blocks": (_pickled(_shared_blocks(3000)), "one and the same list, several times"),
    "shared-traces": (_pickled(_shared_traces(4000)), "one and the same list, several times"),
    "deep": (
        lambda path: path.write_bytes(b"\x80\4" + b"]" * 1_000_000 + b"a" * 999_999 + b"."),
        "more than the 65,536 values admitted wait for their container",
    ),
    "long-number": (_pickled(_snapshot(addr=1 << 2000)), "addr of 2001 bits does not fit in 64"),
    "long-size": (_pickled(_snapshot(size=-(1 << 2000))), "size of 2001 bits is no possible"),
    "many-streams": (_many_streams, "of 20,000 streams, more than the 1,024 admitted"),
    "far-block": (
        _pickled(_snapshot(_segment(_block(size=(1 << 63) - 1), address=(1 << 64) - 1))),
        "ends beyond the addresses of 64 bits",
    ),
    "many-names": (
        _replaced("actions", _header("<U9", f"({1 << 40},)")),
        "claims 1,099,511,627,776 entries, at most 256 are admitted",
    ),
    "long-names": (
        _replaced("actions", _header("<U999999999", "(1,)")),
        "texts have more than the 256 characters admitted",
    ),
    "no-texts": (
        _replaced("actions", _header("<U1", "(1,)") + b"\xff\xff\xff\x7f"),
        "'actions' holds what is no text",
    ),
    "many-events": (_many_events, "claims 20,000,000 entries, at most 16,777,216 are admitted"),
    "long-header": (_long_header, "header has 67,108,864 bytes, at most 1,024 are read"),
    "long-shape": (
        _replaced("size", _header("<i8", "(" + "9" * 900 + ",)")),
        "entries, at most 16,777,216 are admitted",
    ),
    "longer-shape": (_replaced("size", _header("<i8", "(" + "9" * 5000 + ",)")), "header has 5,0"),
    "lying-header": (_replaced("size", _header("<i8", "(2,)")), "promises 2 entries of 8 bytes"),
    "nested-header": (_replaced("size", _header("<i8", "[" * 900)), "header cannot be read"),
    "odd-header": (
        _replaced("size", _header(r"\d", "(0x,)")),
        "'size' is refused: its header cannot be read (SyntaxError)",
    ),
    "escape-in-header": (
        _replaced("size", _header("\x1b[2J", "(2,)")),
        r"it holds '\x1b[2J' of shape (2,)",
    ),
    "later-version": (
        _replaced("size", _header("<i8", "(2,)", version=b"\4\0")),
        "its format has the unknown version 4.0",
    ),
    "no-npy": (_replaced("size", b"hello"), "it ends 3 bytes too early"),
    "other-npy": (_replaced("size", b"hello world"), "it is no .npy file"),
    "second-action": (
        _renamed({"time_us.npy": "action.npy"}),
        "holds the array 'action' 2 times",
    ),
    "bare-action": (_renamed({"action.npy": "action"}), "lacks the array 'action'"),
    "escape-in-name": (
        _renamed({"action.npy": "\x1b[2J\x1b]0;owned\x07\n"}),
        r"(it holds \x1b[2J\x1b]0;owned\x07\n, actions.npy",
    ),
    "many-members": (_many_members, "its list of members exceeds 1,048,576 bytes"),
    "encrypted": (_encrypted, "is encrypted, password required"),
    "corrupt-deflate": (_corrupt(zipfile.ZIP_DEFLATED), "the archive is damaged"),
    "corrupt-lzma": (_corrupt(zipfile.ZIP_LZMA), "'action' is packed by method 14; only stored"),
    "corrupt-bzip2": (_corrupt(zipfile.ZIP_BZIP2), "'action' is packed by method 12; only stored"),
    "huge-size": (
        _replaced("size", _header("<u8", "(2,)") + np.full(2, 1 << 63, dtype="<u8").tobytes()),
        "sizes cannot be negative",
    ),
    "huge-sum": (
        _replaced("size", _header("<i8", "(2,)") + np.full(2, 1 << 62, dtype="<i8").tobytes()),
        "more than the 4.61e+18 that can be counted",
    ),
    "fifo": (os.mkfifo, "this is a FIFO, not a trace"),
    "fifo-behind-a-link": (_fifo_behind_a_link, "this is a FIFO, not a trace"),
    "zeros": (lambda path: path.symlink_to("/dev/zero"), "this is a character device, not"),
    "socket": (_socket, "this is a socket, not a trace"),
    "directory": (Path.mkdir, "this is a directory, not a trace"),
    "loop": (lambda path: path.symlink_to(path), "it cannot be read (Too many levels of symbolic"),
    "sparse": (_sparse, "has 3,221,225,472 bytes, more than the 2,147,483,648 admitted"),
}
