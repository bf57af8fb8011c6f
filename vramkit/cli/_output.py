"""How the command writes: what was asked for on standard output, notes on standard error.

Both may be a pipe whose reader has gone, or a file on a full disk. Names from the user's files may
hold what a terminal would obey, or what the encoding lacks.
"""

import errno
import json
import math
import os
import re
import sys
from typing import Any, TextIO

from vramkit.cli._status import OutputError

# Control characters, but not the end of a line and the tabulator.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write(text: str) -> None:
    """Write what was asked for, with an end of line.

    Raises:
        OutputError: Standard output cannot take it; nothing more goes there.
    """
    stream = sys.stdout
    if stream is None:  # closed before the program began
        raise OutputError(OSError(errno.EBADF, os.strerror(errno.EBADF)))
    try:
        stream.write(printable(text, stream) + "\n")
        stream.flush()
    except OSError as err:
        _silence(stream)
        raise OutputError(err) from err


def write_json(report: dict[str, Any]) -> None:
    """Write one JSON object; numbers that JSON does not know become ``null``.

    Raises:
        OutputError: Standard output cannot take it.
    """
    write(json.dumps(_finite(report), indent=2, allow_nan=False))


def note(text: str, stream: TextIO | None = None) -> None:
    """Write a line for people on standard error; it is lost where that cannot take it."""
    stream = stream or sys.stderr
    if stream is None:
        return
    try:
        stream.write(printable(text, stream) + "\n")
        stream.flush()
    except OSError:
        _silence(stream)


def flush_stderr() -> None:
    """Let nothing unwritten be left that would change the exit status at the end."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)


def printable(text: str, stream: TextIO) -> str:
    """The text with escapes for control characters and for what the stream's encoding lacks."""
    text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _silence(stream: TextIO) -> None:
    """Send the rest to nowhere: Python flushes at exit, and would fail again."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
