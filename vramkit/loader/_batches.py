"""The iterator that a training loop holds."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Self

from torch.utils.data import _utils

from vramkit.errors import LoaderClosedError
from vramkit.loader._packing import CopiedPlace, Packed, Unpacked
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
        """Unpack a batch; it leaves its slot if batches that the user kept take all memory."""
        batch = item
        if isinstance(item, (Packed, Staged)):
            place = None
            if item.lease is not None and item.lease.is_beyond_budget:
                place = CopiedPlace(item.lease)
            batch = item.unpack(place)
        if self._pin:
            batch = _pin_memory(batch, "cuda")
        return batch if self._transform is None else self._transform(batch)

    def finish(self, flight: Any) -> Any:
        """Return the batch."""
        return flight


class _Flight:
    """A batch on its way to the user.

    Attributes:
        batch: What the delivery has begun to deliver.
        error: Raised instead of it.
        number: How many batches the sampler drew before it; None if this is none of them.
        state: The worker and the state of its dataset after the batch, if it has one.
    """

    __slots__ = ("batch", "error", "number", "state")

    def __init__(
        self, batch: Any, number: int | None, state: Any = None, error: Exception | None = None
    ) -> None:
        self.batch, self.number, self.state, self.error = batch, number, state, error


class BatchIterator:
    """Yields the batches of one epoch.

    Args:
        source: Yields batches, packed, staged or plain.
        delivery: Brings them to their place.
        progress: Counts them.
        on_batch: Told the seconds that the caller waited for each batch.
        settle: Called when the second batch is asked for.
    """

    def __init__(
        self,
        source: Any,
        delivery: Delivery,
        progress: Epoch,
        on_batch: Callable[[float], None],
        settle: Callable[[], None],
    ) -> None:
        self._source = source
        self._delivery = delivery
        self._progress = progress
        self._on_batch = on_batch
        self._settle = settle
        self._asked = 0
        self._flights: deque[_Flight] = deque()
        self._ended = False
        self._closed = ""

    def __iter__(self) -> Self:
        return self

    def __len__(self) -> int:
        return len(self._source)

    def __next__(self) -> Any:
        begin = time.perf_counter()
        if self._closed:
            raise LoaderClosedError(self._closed)
        self._asked += 1
        if self._asked == 2:
            self._settle()
        if not self._flights and (self._ended or not self._start_next()):
            self._ended = self._progress.finished = True
            raise StopIteration
        flight = self._flights.popleft()
        if flight.number is not None:
            self._progress.count(flight.number, flight.state)
        if flight.error is not None:
            try:
                raise flight.error
            finally:
                del flight
        batch = self._delivery.finish(flight.batch)
        self._prefetch()
        self._on_batch(time.perf_counter() - begin)
        return batch

    def _start_next(self) -> bool:
        """Begin to deliver the next batch, or note what was raised instead; False at the end."""
        source = self._source
        before = source.taken
        try:
            item = next(source)
            content = item.batch if isinstance(item, Unpacked) else item
            state = getattr(item, "state", None)
            self._flights.append(_Flight(self._delivery.start(content), source.number, state))
        except StopIteration:
            return False
        except Exception as err:  # noqa: BLE001 - raised when its batch is asked for
            # After a timeout, for example, the same batch is asked for again.
            number = source.number if source.taken > before else None
            # No variable of a frame may hold the exception, whose traceback holds the frames.
            self._flights.append(_Flight(None, number, error=err))
        return True

    def _prefetch(self) -> None:
        # An exception belongs to its own batch: it is raised when that batch is asked for.
        while len(self._flights) < self._delivery.depth and not self._ended:
            if not self._ready():
                return
            self._ended = not self._start_next()

    def _ready(self) -> bool:
        ready = getattr(self._source, "ready", None)
        return ready is not None and bool(ready())

    def end(self, why: str, *, wait: bool) -> None:
        """End the iteration; asking for more raises a LoaderClosedError with this text.

        Args:
            why: The text.
            wait: Whether to wait for threads that fetch.
        """
        self._closed = why
        self._flights.clear()
        shutdown = getattr(self._source, "_shutdown_workers", None)
        if not wait:
            shutdown = getattr(self._source, "_leave_workers", shutdown)
        if shutdown is not None:
            shutdown()

    def __getattr__(self, name: str) -> Any:
        # What frameworks look for on PyTorch's iterators.
        if name.startswith("__") or name == "_source":
            raise AttributeError(name)
        return getattr(self._source, name)
