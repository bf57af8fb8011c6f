"""Streams of the pretended device, on which nothing is ever queued.

Blocks belong to the stream that is current when they are made. The number of that stream is kept
by the pretended device (``csrc/bind/torch/adapter_fake.cpp``), as autograd runs each node of the
backward pass on the stream of its forward operator.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import torch

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import line_of_caller

# PyTorch makes so many streams of each priority, and gives them out in turn.
_STREAMS_OF_A_PRIORITY, _PRIORITIES = 32, 4


class _Device:
    """The pretended device of the running trace, and the streams that were given out."""

    def __init__(self) -> None:
        self.library: ctypes.CDLL | None = None
        self.given: Counter[int] = Counter()

    def next_number(self, priority: int) -> int:
        level = min(max(-priority, 0), _PRIORITIES - 1)
        place = self.given[level] % _STREAMS_OF_A_PRIORITY
        self.given[level] += 1
        return 1 + level * _STREAMS_OF_A_PRIORITY + place


_device = _Device()


def begin(library: ctypes.CDLL) -> None:
    """Forget the streams of an earlier trace, and make the default one current.

    Args:
        library: The pretended device.
    """
    _device.library = library
    _device.given.clear()
    _exchange(0)


def current_number() -> int:
    """Return the number of the current stream: 0 for the default one."""
    return int(_device.library.vramkit_fake_stream()) if _device.library is not None else 0


def _exchange(number: int) -> int:
    assert _device.library is not None
    return int(_device.library.vramkit_fake_exchange_stream(number))


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
    """A stream; a class, as programs annotate with it.

    Attributes:
        number: Its number; 0 for the default one.
    """

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        """Take the next stream of a priority.

        Args:
            device: The one device.
            priority: Lower numbers are higher priorities.
        """
        super().__init__()
        del device
        self.priority = priority
        self.number = _device.next_number(priority)
        self._before: list[int] = []

    @property
    def cuda_stream(self) -> int:
        """The handle of the stream."""
        return self.number

    stream_id = cuda_stream

    @property
    def device(self) -> torch.device:
        """The one device."""
        return torch.device("cuda", 0)

    def __repr__(self) -> str:
        """Name device and handle, as PyTorch does."""
        return f"<torch.cuda.Stream device={self.device} cuda_stream={self.number:#x}>"

    def __eq__(self, other: object) -> bool:
        """Streams of one number are the same."""
        return isinstance(other, Stream) and other.number == self.number

    def __hash__(self) -> int:
        """Return a hash of the number."""
        return hash((Stream, self.number))

    def __enter__(self) -> Self:
        """Make it the current one."""
        self._before.append(_exchange(self.number))
        return self

    def __exit__(self, *_: object) -> None:
        """Make the one before it current."""
        _exchange(self._before.pop())


def _stream_of(number: Callable[[], int]) -> Callable[..., Stream]:
    """A function that returns the stream of a number, which exists already."""

    def stream(device: Any = None) -> Stream:
        del device
        found = Stream.__new__(Stream)
        found.priority, found.number, found._before = 0, number(), []
        return found

    return stream


class Entered:
    """Makes a stream the current one."""

    def __init__(self, stream: Any) -> None:
        """Take a stream, or None for no change."""
        self._stream = stream

    def __enter__(self) -> None:
        """Make it the current one."""
        if self._stream is not None:
            self._stream.__enter__()

    def __exit__(self, *_: object) -> None:
        """Make the one before it current."""
        if self._stream is not None:
            self._stream.__exit__()


def _set_stream(stream: Any) -> None:
    if stream is not None:
        _exchange(stream.number)


class Graph:
    """Stands for the classes of graphs; a class, as programs annotate with them."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Refuse.

        Raises:
            UntraceableError: Always.
        """
        raise UntraceableError(
            f"{line_of_caller()} uses graphs of its own, which are not simulated, so its memory "
            "cannot be known; leave them out of the estimated step"
        )


# What ``torch.cuda`` has in place of its own.
ANSWERS: dict[str, Any] = {
    **dict.fromkeys(("CUDAGraph", "graph"), Graph),
    **dict.fromkeys(("Stream", "ExternalStream"), Stream),
    **dict.fromkeys(("stream", "StreamContext"), Entered),
    "current_stream": _stream_of(current_number),
    "default_stream": _stream_of(lambda: 0),
    "set_stream": _set_stream,
    "Event": Idle,
}
