"""Batches of this process that lie in a slot, and the memory in which they are put together."""

from collections.abc import Callable
from typing import Any

import torch

from vramkit.loader._arena import Arena, Lease
from vramkit.loader._packing import ALIGNMENT, HostPlace, Place, Shape, is_plain
from vramkit.loader._structure import map_leaves


class Reference:
    """Stands in a batch for a tensor that lies in the batch's slot."""

    __slots__ = ("dtype", "offset", "shape", "stride")

    def __init__(
        self, offset: int, dtype: torch.dtype, shape: Shape, stride: Shape | None = None
    ) -> None:
        self.offset, self.dtype, self.shape, self.stride = offset, dtype, shape, stride


class Staged:
    """A batch whose tensors lie in a slot.

    Args:
        lease: The slot.
        structure: The batch with a :class:`Reference` for each of these tensors.
        used_bytes: How much of the slot the tensors take.
    """

    __slots__ = ("lease", "structure", "used_bytes")

    def __init__(self, lease: Lease, structure: Any, used_bytes: int) -> None:
        self.lease, self.structure, self.used_bytes = lease, structure, used_bytes

    def unpack(self, place: Place | None = None) -> Any:
        """Return the batch, its tensors at a place: in the slot itself unless told otherwise."""
        at: Place = HostPlace(self.lease) if place is None else place

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Reference):
                return at.tensor(leaf.offset, leaf.dtype, leaf.shape, leaf.stride)
            return leaf

        return map_leaves(self.structure, resolve)


def stage(batch: Any, arena: Arena, copy: Callable[[int, int, int], object]) -> Any:
    """Copy the plain tensors of a batch into a slot; returns it staged, or as it is if it has none.

    Raises:
        SystemCallError: There is no memory for the slot.
    """
    total = 0
    places: list[int] = []

    def measure(leaf: Any) -> Any:
        nonlocal total
        if isinstance(leaf, torch.Tensor) and is_plain(leaf) and leaf.numel():
            total = -(-total // ALIGNMENT) * ALIGNMENT
            places.append(total)
            total += leaf.numel() * leaf.element_size()
        return leaf

    map_leaves(batch, measure)
    if not places:
        return batch
    lease = arena.lease()
    arena.grow(lease.slot, total)
    offsets = iter(places)

    def place(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and is_plain(leaf) and leaf.numel():
            offset = next(offsets)
            dense = leaf.contiguous()
            size = dense.numel() * dense.element_size()
            copy(lease.slot.address + offset, dense.data_ptr(), size)
            return Reference(offset, leaf.dtype, tuple(leaf.shape))
        return leaf

    return Staged(lease, map_leaves(batch, place), total)


def empty_batch(
    arena: Arena, layout: list[tuple[torch.dtype, Shape]]
) -> tuple[Lease, list[Reference], int]:
    """Lease a slot for tensors of these kinds; returns it, where they lie, and the size.

    Raises:
        SystemCallError: There is no memory for the slot.
    """
    references, total = [], 0
    for dtype, shape in layout:
        total = -(-total // ALIGNMENT) * ALIGNMENT
        references.append(Reference(total, dtype, shape))
        count = 1
        for size in shape:
            count *= size
        total += count * dtype.itemsize
    lease = arena.lease()
    arena.grow(lease.slot, total)
    return lease, references, total
