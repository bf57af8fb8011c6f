"""Batches as bytes: tensors lie in a slot, everything else is pickled around them.

The worker's half is :class:`Packer`, the parent's is :class:`Packed`. A tensor that PyTorch itself
would not send as plain bytes (sparse, on a device, a subclass, one that requires a gradient) takes
PyTorch's own way between processes.
"""

import ctypes
import io
import math
import pickle
import threading
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import numpy as np
import torch

from vramkit.loader._arena import Lease

# GPUs read at full speed from such addresses, whatever the element size.
ALIGNMENT = 256

Shape = tuple[int, ...]


def aligned(offset: int) -> int:
    """The first offset from there on at which a tensor may lie."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


_NUMPY_DTYPES = {
    torch.from_numpy(np.empty(0, name)).dtype: np.dtype(name)
    for name in ["?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16"]
}
# Any numpy has arrays of so many.
_NUMPY_DIMENSIONS = 32
# What PyTorch sends between processes as handles of memory.
_TORCHS = (torch.Tensor, torch.UntypedStorage, torch.TypedStorage)


class Room(Protocol):
    """Memory in which tensors can be placed."""

    def offset_of(self, address: int, size_bytes: int) -> int | None:
        """Return where in the memory these bytes already lie, or None."""

    def store(self, address: int, size_bytes: int) -> int | None:
        """Copy bytes into the memory and return where they lie, or None if there is no room."""


class Place(Protocol):
    """Where the tensors of a batch come to life."""

    def tensor(
        self, offset: int, dtype: torch.dtype, shape: Shape, stride: Shape | None
    ) -> torch.Tensor:
        """Return the tensor at an offset; contiguous if there is no stride."""


_unpacking = threading.local()


def _tensor_at(
    offset: int, dtype: torch.dtype, shape: Shape, stride: Shape | None = None
) -> torch.Tensor:
    tensor: torch.Tensor = _unpacking.place.tensor(offset, dtype, shape, stride)
    return tensor


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor is nothing but its bytes: dense, in host memory, without a gradient."""
    return (
        type(tensor) is torch.Tensor
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.is_nested
        and not tensor._is_zerotensor()
    )


class Packer:
    """Turns a batch into a pickle whose tensors lie in a slot."""

    def __init__(self, room: Room) -> None:
        self._room = room
        # Whether part of the last batch went PyTorch's way, which needs its worker to be alive.
        self.by_torch = False

    def pack(self, batch: object) -> bytes:
        """Return the pickle; the tensors' bytes are in the room afterwards."""
        out = io.BytesIO()
        pickler = _Pickler(out, self._room)
        pickler.dump(batch)
        self.by_torch = pickler.by_torch
        return out.getvalue()


class _Pickler(ForkingPickler):
    def __init__(self, out: io.BytesIO, room: Room) -> None:
        super().__init__(out, pickle.HIGHEST_PROTOCOL)
        self._room = room
        self.by_torch = False

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not torch.Tensor or not is_plain(obj):
            self.by_torch = self.by_torch or isinstance(obj, _TORCHS)
            return NotImplemented
        stride: Shape | None = None
        count = obj.numel()
        if not obj.is_contiguous():
            span = span_of(tuple(obj.shape), obj.stride())
            if span <= count:
                # Dense in another order of dimensions, or expanded.
                stride, count = obj.stride(), span
            else:
                obj = obj.contiguous()
        size = count * obj.element_size()
        offset = self._room.offset_of(obj.data_ptr(), size)
        if offset is None:
            offset = self._room.store(obj.data_ptr(), size)
        if offset is None:
            self.by_torch = True
            return NotImplemented
        return _tensor_at, (offset, obj.dtype, tuple(obj.shape), stride)


def span_of(shape: Shape, stride: Shape) -> int:
    """How many elements there are from the first in memory to the last; none is empty."""
    return 1 + sum(step * (size - 1) for step, size in zip(stride, shape, strict=True))


class Packed:
    """A batch that has arrived in a slot and is not unpacked yet.

    Args:
        lease: The slot.
        pickled: What :meth:`Packer.pack` returned.
        used_bytes: How much of the slot the tensors take.
    """

    __slots__ = ("lease", "pickled", "state", "used_bytes")

    def __init__(self, lease: Lease, pickled: bytes, used_bytes: int) -> None:
        self.lease = lease
        self.pickled = pickled
        self.used_bytes = used_bytes
        # The worker, and the state of its dataset after this batch.
        self.state: tuple[int, bytes] | None = None

    def unpack(self, place: Place | None = None) -> Any:
        """Return the batch, its tensors at a place: in the slot itself unless told otherwise."""
        # The user's own unpickling code may take a batch of another loader.
        outside = getattr(_unpacking, "place", None)
        _unpacking.place = HostPlace(self.lease) if place is None else place
        try:
            return pickle.loads(self.pickled)
        finally:
            _unpacking.place = outside


class Unpacked:
    """A batch that had to be unpacked when it arrived."""

    __slots__ = ("batch", "state")

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        # The worker, and the state of its dataset after this batch.
        self.state: tuple[int, bytes] | None = None


class HostPlace:
    """Tensors over a slot. Each has a storage of its own, and all of them hold the lease."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._buffer: Any = None

    def tensor(
        self, offset: int, dtype: torch.dtype, shape: Shape, stride: Shape | None
    ) -> torch.Tensor:
        """Return the tensor at an offset of the slot."""
        if self._buffer is None:
            slot = self._lease.slot
            slot.delivered = True
            self._buffer = owned_buffer(slot.address, slot.capacity, self._lease)
        return tensor_over(self._buffer, offset, dtype, shape, stride)


class CopiedPlace:
    """Tensors in memory of their own, with the bytes that lie in a slot."""

    def __init__(self, lease: Lease) -> None:
        self._slot = HostPlace(lease)

    def tensor(
        self, offset: int, dtype: torch.dtype, shape: Shape, stride: Shape | None
    ) -> torch.Tensor:
        """Return a copy of the tensor at an offset of the slot."""
        if stride is None:
            return self._slot.tensor(offset, dtype, shape, None).clone()
        flat = self._slot.tensor(offset, dtype, (span_of(shape, stride),), None)
        return flat.clone().as_strided(shape, stride)


def contiguous_stride(shape: Shape) -> Shape:
    """The strides, in elements, of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def owned_buffer(address: int, size_bytes: int, owner: object) -> Any:
    """Memory as an object with the buffer protocol that holds its owner."""
    buffer: Any = (ctypes.c_char * size_bytes).from_address(address)
    buffer.owner = owner
    return buffer


def tensor_over(
    buffer: Any, offset: int, dtype: torch.dtype, shape: Shape, stride: Shape | None = None
) -> torch.Tensor:
    """A tensor over part of a buffer, which lives as long as the tensor's storage."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype, device="cpu")
    numpy_dtype = _NUMPY_DTYPES.get(dtype)
    if numpy_dtype is not None and stride is None and len(shape) <= _NUMPY_DIMENSIONS:
        # The quickest way to a tensor with a storage of its own.
        return torch.from_numpy(np.ndarray(shape, numpy_dtype, buffer, offset))
    if stride is None:
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset).view(shape)
    flat = torch.frombuffer(buffer, dtype=dtype, count=span_of(shape, stride), offset=offset)
    return flat.as_strided(shape, stride)
