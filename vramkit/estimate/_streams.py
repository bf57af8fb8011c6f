"""Streams of the pretended device, on which nothing is ever queued.

Blocks belong to the stream that is current when they are made. PyTorch's distributed code has
streams of its own, whose uses are known; those of a step are refused, as autograd runs its backward
pass on them, and ``Tensor.record_stream`` lets blocks live on until a GPU has caught up.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import line_of_caller

_DISTRIBUTED = str(Path(torch.__file__).parent / "distributed")
_numbers = itertools.count(1)
# Those that are current, the innermost last; empty for the default stream.
_entered: list[int] = []


def current_number() -> int:
    """Return the number of the current stream: 0 for the default one."""
    return _entered[-1] if _entered else 0


def begin() -> None:
    """Forget the streams of an earlier trace."""
    _entered.clear()


class Idle:
    """Stands for an event or a stream."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take any options."""

    def record(self, stream: Any = None) -> Any:
        """Do nothing, and return the event."""
        del stream
        return self

    def synchronize(self) -> None:
        """Do nothing."""

    def wait(self, stream: Any = None) -> None:
        """Do nothing."""

    def wait_event(self, event: Any) -> None:
        """Do nothing."""

    def wait_stream(self, stream: Any) -> None:
        """Do nothing."""

    def record_event(self, event: Any = None) -> Any:
        """Return an event."""
        return event or Idle()

    def query(self) -> bool:
        """Everything is done."""
        return True

    def elapsed_time(self, _: Any) -> float:
        """Return no time at all."""
        return 0.0


class Stream(Idle):
    """A stream of PyTorch's distributed code; a class, as programs annotate with it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Refuse others than those.

        Raises:
            UntraceableError: A step makes a stream.
        """
        _only_for_distributed()
        self.number = next(_numbers)


class CurrentStream(Idle):
    """Stands for the stream that is current."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Keep its number."""
        self.number = current_number()


class Entered:
    """Makes a stream the current one."""

    def __init__(self, stream: Any) -> None:
        """Take a stream, or None for no change."""
        _only_for_distributed()
        self._stream = stream

    def __enter__(self) -> None:
        """Make it the current one."""
        _entered.append(current_number() if self._stream is None else self._stream.number)

    def __exit__(self, *_: object) -> None:
        """Make the one before it current."""
        _entered.pop()


class Graph:
    """Stands for the classes of graphs; a class too, as programs annotate with them."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Refuse.

        Raises:
            UntraceableError: Always.
        """
        raise _refusal()


def _only_for_distributed() -> None:
    if not sys._getframe(2).f_code.co_filename.startswith(_DISTRIBUTED):
        raise _refusal()


def _refusal() -> UntraceableError:
    return UntraceableError(
        f"{line_of_caller()} uses streams or graphs of its own, which are not simulated, so "
        "its memory cannot be known; leave them out of the estimated step"
    )


# What ``torch.cuda`` has in place of its own.
ANSWERS: dict[str, Any] = {
    **dict.fromkeys(("CUDAGraph", "graph"), Graph),
    **dict.fromkeys(("Stream", "ExternalStream"), Stream),
    **dict.fromkeys(("current_stream", "default_stream"), CurrentStream),
    "stream": Entered,
    "Event": Idle,
}
