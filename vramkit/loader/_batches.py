"""The iterator that a training loop holds."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Self

from torch.utils.data import _utils

from vramkit.loader._packing import Packed
from vramkit.loader._resume import Epoch
from vramkit.loader._staged import Staged

_pin_memory: Any = _utils.pin_memory.pin_memory


class Delivery(Protocol):
    """Brings batches to where the user wants them."""

    depth: int

    def start(self, item: Any) -> Any:
        """Begin to deliver what a source yielded."""

    def finish(self, flight: Any) -> Any:
        """Return the delivered batch."""


class HostDelivery:
    """Delivers batches in host memory.

    Args:
        pin: Put into pinned memory what is not there yet.
        transform: Runs on each batch.
        depth: How many batches may be taken from the source before they are asked for.
    """

    def __init__(
        self, pin: bool, transform: Callable[[Any], Any] | None = None, depth: int = 0
    ) -> None:
        self.depth = depth
        self._pin, self._transform = pin, transform

    def start(self, item: Any) -> Any:
        """Unpack a batch."""
        batch = item.unpack() if isinstance(item, (Packed, Staged)) else item
        if self._pin:
            batch = _pin_memory(batch, "cuda")
        return batch if self._transform is None else self._transform(batch)

    def finish(self, flight: Any) -> Any:
        """Return the batch."""
        return flight


class _Raises:
    """Stands in the order of batches for one that failed."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class BatchIterator:
    """Yields the batches of one epoch.

    Args:
        source: Yields batches, packed, staged or plain.
        delivery: Brings them to their place.
        progress: Counts them.
        on_batch: Told the seconds that the caller waited for each batch.
    """

    def __init__(
        self,
        source: Any,
        delivery: Delivery,
        progress: Epoch,
        on_batch: Callable[[float], None],
    ) -> None:
        self._source = source
        self._delivery = delivery
        self._progress = progress
        self._on_batch = on_batch
        self._flights: deque[Any] = deque()
        self._ended = False
        self._closed = ""

    def __iter__(self) -> Self:
        return self

    def __len__(self) -> int:
        return len(self._source)

    def __next__(self) -> Any:
        begin = time.perf_counter()
        if self._closed:
            raise RuntimeError(self._closed)
        if not self._flights:
            self._take()
        flight = self._flights.popleft()
        if isinstance(flight, _Raises):
            raise flight.error
        batch = self._delivery.finish(flight)
        self._progress.yielded += 1
        self._prefetch()
        self._on_batch(time.perf_counter() - begin)
        return batch

    def _take(self) -> None:
        if self._ended:
            self._progress.finished = True
            raise StopIteration
        try:
            item = next(self._source)
        except StopIteration:
            self._ended = True
            self._progress.finished = True
            raise
        self._flights.append(self._delivery.start(item))

    def _prefetch(self) -> None:
        # An exception belongs to its own batch: it is raised when that batch is asked for.
        while len(self._flights) < self._delivery.depth and not self._ended and self._ready():
            try:
                self._flights.append(self._delivery.start(next(self._source)))
            except StopIteration:
                self._ended = True
            except Exception as err:  # noqa: BLE001 - raised by _Raises
                self._flights.append(_Raises(err))

    def _ready(self) -> bool:
        ready = getattr(self._source, "ready", None)
        return ready is not None and bool(ready())

    def close(self, why: str) -> None:
        """End the iteration; asking for more raises a RuntimeError with this text."""
        self._closed = why
        self._flights.clear()
        shutdown = getattr(self._source, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()

    def __getattr__(self, name: str) -> Any:
        # What frameworks look for on PyTorch's iterators.
        if name.startswith("__") or name == "_source":
            raise AttributeError(name)
        return getattr(self._source, name)
