"""Ctrl-C while a step is traced: it takes effect in the program's own code, and between operators.

Python raises ``KeyboardInterrupt`` between any two of its instructions. In the midst of PyTorch's
dispatch of an operator this leaves modes behind, or ends the process, as C++ code does not expect
an exception there.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from vramkit.estimate._conversions import is_own


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[Callable[[], None]]:
    """Keep the first Ctrl-C that meets other code; the second one takes effect at once.

    Yields:
        A function that lets the one that was kept take effect; so does the end of the scope.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    kept: list[tuple[int, Any]] = []

    def keep(number: int, frame: FrameType | None) -> None:
        kept.append((number, frame))
        if len(kept) > 1 or frame is None or is_own(frame.f_code.co_filename):
            take_effect()

    def take_effect() -> None:
        if kept:
            arguments = kept[0]
            kept.clear()
            handler(*arguments)

    signal.signal(signal.SIGINT, keep)
    try:
        yield take_effect
    finally:
        signal.signal(signal.SIGINT, handler)
        take_effect()
