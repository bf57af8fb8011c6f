"""A progress line on a terminal."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from vramkit.units import counted

_WIDTH = 30
_INTERVAL_S = 0.1


class ProgressLine:
    """Draws how much is done, when the stream is a terminal; does nothing elsewhere.

    Call it with the number done and their total. The line is wiped at the end.
    """

    def __init__(self, stream: TextIO | None = None, *, noun: str = "event") -> None:
        """Draw on ``stream``, standard error by default; count things of that noun."""
        self._noun = noun
        # Python has no standard error where it was closed.
        self._stream: TextIO | None = stream or sys.stderr
        self._shown = False
        self._next_s = 0.0

    def __enter__(self) -> Self:
        """Nothing is drawn before the first call."""
        return self

    def __call__(self, done: int, total: int) -> None:
        """Draw, at most ten times a second."""
        now_s = time.monotonic()
        if now_s < self._next_s or self._stream is None or not self._stream.isatty():
            return
        self._next_s = now_s + _INTERVAL_S
        self._shown = True
        part = done / max(total, 1)
        bar = "#" * int(part * _WIDTH)
        self._write(f"\r[{bar:<{_WIDTH}}] {part:4.0%} of {counted(total, self._noun)}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wipe the line."""
        if self._shown:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(OSError):  # the terminal may have gone
            self._stream.write(text)
            self._stream.flush()
