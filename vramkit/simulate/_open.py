"""Opens trace files: regular ones only."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vramkit.errors import TraceError
from vramkit.simulate._limits import MAX_FILE_BYTES

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without waiting for a writer as a FIFO does.

    Symbolic links are followed; what they lead to is judged.

    Raises:
        TraceError: It is no regular file, or has too many bytes.
        OSError: It cannot be opened.
    """
    try:
        # Opening a device can rewind a tape: look first. The descriptor's answer is the one that
        # counts, since the path may lead elsewhere by then.
        _check(path.stat())
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as err:  # a null character in the path
        raise TraceError(f"this is no path ({err})") from err
    try:
        _check(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        found = _KINDS.get(kind, "no regular file")
        raise TraceError(f"this is {found}, not a trace; copy the trace to a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise TraceError(
            f"the file has {status.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} admitted; "
            "record with context=None, fewer steps, or a smaller max_entries"
        )
