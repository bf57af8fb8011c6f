"""Batches of this process that lie in a slot, and the memory in which they are put together."""

import math
from collections.abc import Callable
from typing import Any

import torch

from vramkit.loader._arena import Arena, Lease
from vramkit.loader._packing import HostPlace, Place, Shape, aligned, is_plain
from vramkit.loader._registered_rows import RowCopies
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
        copies: Further tensors, which never lie in the slot: the GPU itself copies their rows.
    """

    __slots__ = ("copies", "lease", "state", "structure", "used_bytes")

    def __init__(
        self, lease: Lease | None, structure: Any, used_bytes: int, copies: RowCopies | None = None
    ) -> None:
        self.lease, self.structure, self.used_bytes = lease, structure, used_bytes
        self.copies = copies
        # The worker, and the state of its dataset after this batch.
        self.state: tuple[int, bytes] | None = None

    def unpack(self, place: Place | None = None) -> Any:
        """Return the batch, its tensors at a place: in the slot itself unless told otherwise."""
        if place is None:
            assert self.lease is not None
            place = HostPlace(self.lease)
        return _resolve(self.structure, place)


def _resolve(part: Any, place: Place) -> Any:
    kind = type(part)
    if kind is Reference:
        return place.tensor(part.offset, part.dtype, part.shape, part.stride)
    if kind is dict:
        return {key: _resolve(each, place) for key, each in part.items()}
    if kind is list:
        return [_resolve(each, place) for each in part]
    if kind is tuple:
        return tuple([_resolve(each, place) for each in part])

    def visit(leaf: Any) -> Any:
        return _resolve(leaf, place) if type(leaf) is Reference else leaf

    return map_leaves(part, visit)


def stage(batch: Any, arena: Arena, copy: Callable[[int, int, int], object]) -> Any:
    """Copy the plain tensors of a batch into a slot; returns it staged, or as it is if it has none.

    Raises:
        SystemCallError: There is no memory for the slot.
    """
    tensors: list[torch.Tensor] = []

    def collect(leaf: Any) -> Any:
        if _is_staged(leaf):
            tensors.append(leaf)
        return leaf

    map_leaves(batch, collect)
    if not tensors:
        return batch
    layout = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    lease, references, used_bytes = empty_batch(arena, layout)
    for tensor, reference in zip(tensors, references, strict=True):
        dense = tensor.contiguous()
        copy(lease.slot.address + reference.offset, dense.data_ptr(), dense.nbytes)
    placed = iter(references)
    structure = map_leaves(batch, lambda leaf: next(placed) if _is_staged(leaf) else leaf)
    return Staged(lease, structure, used_bytes)


def _is_staged(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and is_plain(leaf) and leaf.numel() > 0


def empty_batch(
    arena: Arena, layout: list[tuple[torch.dtype, Shape]]
) -> tuple[Lease, list[Reference], int]:
    """Lease a slot for tensors of these kinds; returns it, where they lie, and the size.

    Raises:
        SystemCallError: There is no memory for the slot.
    """
    references, total = lay_out(layout)
    lease = arena.lease()
    arena.grow(lease.slot, total)
    return lease, references, total


def empty_batch_within(
    arena: Arena, layout: list[tuple[torch.dtype, Shape]]
) -> tuple[Lease, list[Reference], int] | None:
    """Do the same as :func:`empty_batch`, but return None if the slots may take no more memory.

    Raises:
        SystemCallError: There is no memory for the slot.
    """
    references, total = lay_out(layout)
    lease = arena.lease_within(total)
    return None if lease is None else (lease, references, total)


def lay_out(layout: list[tuple[torch.dtype, Shape]], begin: int = 0) -> tuple[list[Reference], int]:
    """Return where tensors of these kinds lie one after the other, and where the last one ends."""
    references, total = [], begin
    for dtype, shape in layout:
        total = aligned(total)
        references.append(Reference(total, dtype, shape))
        total += math.prod(shape) * dtype.itemsize
    return references, total
