"""Delivers batches on a device: one copy a batch, on a stream of the loader's own.

The loader's stream waits for nobody, and the consumer's stream waits for the copy by an event. A
batch's memory on the device is taken from the allocator on the loader's stream. The tensors that
the user gets hold an owner of that memory; when the last of them is gone, an event on the
consumer's stream marks the end of its use, and the memory goes back only after that event. So a
batch may be kept for any time and needs no ``record_stream``.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from vramkit.loader._packing import Packed, Shape, contiguous_stride, owned_buffer
from vramkit.loader._staged import Staged
from vramkit.loader._structure import map_leaves

Transform = Callable[[Any], Any]


class InFlight:
    """A batch on its way to the device."""

    __slots__ = ("batch", "done", "owners")

    def __init__(self, batch: Any, done: torch.cuda.Event, owners: "list[Owner]") -> None:
        self.batch, self.done, self.owners = batch, done, owners


class Owner:
    """Holds the memory of delivered tensors; its end is the end of their use.

    It shows the memory by ``__cuda_array_interface__``, so that the tensors made from it hold it.
    """

    def __init__(self, memory: torch.Tensor, retired: "Retired") -> None:
        self._memory = memory
        self._retired = retired
        # The stream on which the batch is used; set when the batch is handed over.
        self.consumer: torch.cuda.Stream | None = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self._memory.numel(),),
            "typestr": "|u1",
            "data": (self._memory.data_ptr(), False),
            "version": 3,
        }

    def __del__(self) -> None:
        self._retired.add(self._memory, self.consumer)


class Retired:
    """Device memory that the user has let go and whose last use may not be over."""

    def __init__(self) -> None:
        self._unmarked: deque[tuple[torch.Tensor, torch.cuda.Stream | None]] = deque()
        self._marked: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()
        self._closed = False

    def add(self, memory: torch.Tensor, consumer: torch.cuda.Stream | None) -> None:
        """Take memory over; called by destructors, in any thread."""
        if self._closed:
            if consumer is not None:
                memory.record_stream(consumer)
            return
        if consumer is None or torch.cuda.is_current_stream_capturing():
            # Recorded into a graph, the event would tell nothing: it is recorded later.
            self._unmarked.append((memory, consumer))
            return
        event = torch.cuda.Event()
        event.record(consumer)
        self._marked.append((memory, event))

    def close(self, stream: torch.cuda.Stream) -> None:
        """Return everything; what is let go later is left to the allocator."""
        self._closed = True
        self.give_back(stream, keep=0)

    def give_back(self, stream: torch.cuda.Stream, keep: int) -> None:
        """Return to the allocator what is no longer used.

        Beyond ``keep`` pieces of memory, ``stream``, which the allocator serves next, waits.
        """
        while self._unmarked:
            memory, consumer = self._unmarked.popleft()
            event = None
            if consumer is not None:
                event = torch.cuda.Event()
                event.record(consumer)
            self._marked.append((memory, event))
        for _ in range(len(self._marked)):
            memory, event = self._marked.popleft()
            if event is None or event.query():
                del memory
            elif len(self._marked) >= keep:
                stream.wait_event(event)
                del memory
            else:
                self._marked.append((memory, event))


class _DevicePlace:
    """Tensors over one buffer on the device."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self._buffer = buffer

    def tensor(
        self, offset: int, dtype: torch.dtype, shape: Shape, stride: Shape | None
    ) -> torch.Tensor:
        return tensor_in(self._buffer, offset, dtype, shape, stride)


def tensor_in(
    memory: torch.Tensor, offset: int, dtype: torch.dtype, shape: Shape, stride: Shape | None
) -> torch.Tensor:
    """A tensor in the storage of another, at an offset in bytes.

    It is not a view of the other: an in-place operation on one tensor of a batch does not count as
    a change of the others, which autograd would refuse.
    """
    if stride is None:
        stride = contiguous_stride(shape)
    tensor = torch.empty(0, dtype=dtype, device=memory.device)
    return tensor.set_(memory.untyped_storage(), offset // dtype.itemsize, shape, stride)


def most_outstanding(depth: int) -> int:
    """How many batches may be on their way to the device while the host goes on."""
    return depth + 2


class CudaDelivery:
    """Copies batches to a CUDA device.

    Args:
        device: The device.
        transform: Runs on each batch on the device, on the loader's stream.
        depth: How many batches are on the device before they are asked for.
    """

    def __init__(self, device: torch.device, transform: Transform | None, depth: int) -> None:
        self.device = device
        self.depth = depth
        self._transform = transform
        self._stream = torch.cuda.Stream(device)
        self._retired = Retired()
        # What the GPU still copies from.
        self._sources: deque[tuple[Packed | Staged, torch.cuda.Event]] = deque()

    def start(self, item: Any) -> InFlight:
        """Begin to bring a batch to the device; a host that is far ahead of the GPU waits."""
        self._release_sources()
        self._retired.give_back(self._stream, most_outstanding(self.depth))
        owners: list[Owner] = []
        sources: list[Packed | Staged] = []
        with torch.cuda.stream(self._stream):
            batch = self._copy(item, owners, sources)
            if self._transform is not None:
                batch = self._own(self._transform(batch), owners)
            done = torch.cuda.Event(blocking=True)
            done.record(self._stream)
        self._sources.extend((each, done) for each in sources)
        return InFlight(batch, done, owners)

    def finish(self, flight: InFlight) -> Any:
        """Hand a batch over to the current stream, which waits for it; the host does not."""
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(flight.done)
        for owner in flight.owners:
            owner.consumer = consumer
        flight.owners.clear()
        return flight.batch

    def _copy(self, item: Any, owners: list[Owner], sources: list[Packed | Staged]) -> Any:
        if not isinstance(item, (Packed, Staged)):
            return self._own(self._move(item), owners)
        sources.append(item)
        copies = item.copies if isinstance(item, Staged) else None
        size = item.used_bytes if copies is None else copies.end
        if not size:
            return self._own(self._move(item.unpack()), owners)
        memory = torch.empty(size, dtype=torch.uint8, device=self.device)
        if copies is not None and not copies.source.copy(
            copies.parts, memory.data_ptr(), self._stream
        ):
            return self._copy(copies.instead(), owners, sources)
        if item.lease is not None and item.used_bytes:
            source = torch.frombuffer(
                owned_buffer(item.lease.slot.address, item.used_bytes, item.lease),
                dtype=torch.uint8,
            )
            memory[: item.used_bytes].copy_(source, non_blocking=True)
        batch = item.unpack(_DevicePlace(self._owned(memory, owners)))
        return self._move(batch)

    def _move(self, batch: Any) -> Any:
        def move(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return leaf if leaf.device == self.device else leaf.to(self.device)
            return leaf.to(self.device) if hasattr(leaf, "to") else leaf

        return map_leaves(batch, move)

    def _own(self, batch: Any, owners: list[Owner]) -> Any:
        """Put owners between the user and memory that the allocator gave to the loader's stream."""
        seen: dict[int, torch.Tensor] = {}

        def own(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or leaf.device != self.device:
                return leaf
            storage = leaf.untyped_storage()
            if (
                type(leaf) is not torch.Tensor
                or leaf.layout is not torch.strided
                or leaf.requires_grad
            ):
                leaf.record_stream(torch.cuda.current_stream(self.device))
                return leaf
            if storage.data_ptr() not in seen:
                whole = torch.empty(0, dtype=torch.uint8, device=self.device)
                whole.set_(storage)
                seen[storage.data_ptr()] = self._owned(whole, owners)
            whole = seen[storage.data_ptr()]
            offset = int(leaf.storage_offset()) * leaf.element_size()
            return tensor_in(whole, offset, leaf.dtype, tuple(leaf.shape), leaf.stride())

        return map_leaves(batch, own)

    def _owned(self, memory: torch.Tensor, owners: list[Owner]) -> torch.Tensor:
        if not memory.numel():
            return memory
        owner = Owner(memory, self._retired)
        owners.append(owner)
        return torch.as_tensor(owner, device=self.device)

    def _release_sources(self) -> None:
        # A loop that never waits for the GPU would fill more and more slots ahead of it.
        while len(self._sources) > most_outstanding(self.depth):
            self._sources.popleft()[1].synchronize()
        while self._sources and self._sources[0][1].query():
            self._sources.popleft()

    def close(self) -> None:
        """Wait for the copies that are under way, and return what nobody holds."""
        for _, event in self._sources:
            event.synchronize()
        self._sources.clear()
        self._retired.close(self._stream)
