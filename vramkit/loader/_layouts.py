"""Batches that are nothing but plain tensors in lists, tuples and dicts.

Most batches are, and most of them have the same layout as the one before. A worker describes a
layout once; from then on its messages name it by number, nothing is pickled, and the tensors that
are not in the slot yet are copied by one call.
"""

import pickle
from typing import Any

import torch

from vramkit.loader._packing import aligned, is_plain
from vramkit.loader._slot_writer import SlotWriter
from vramkit.loader._staged import Reference

# From so many tensors on, one call that copies all is cheaper than a call for each.
_TOGETHER_FROM = 4
_LARGE_BYTES = 1 << 16
_MOST_LAYOUTS = 64
_MOST_VIEWS = 64
_KEYS = frozenset({str, int, bool})


class Layout:
    """Where the tensors of a batch lie.

    Attributes:
        number: Of this layout among its worker's.
        pickled: The batch, with a :class:`Reference` for each tensor.
        used_bytes: How much of the slot the tensors take.
        moved: The positions of the tensors that have to be copied to the slot.
    """

    __slots__ = ("moved", "number", "pickled", "references", "used_bytes")

    def __init__(
        self,
        number: int,
        pickled: bytes,
        references: list[Reference],
        used_bytes: int,
        moved: list[int],
    ) -> None:
        self.number, self.pickled, self.references = number, pickled, references
        self.used_bytes, self.moved = used_bytes, moved


class Layouts:
    """The layouts of one worker.

    Args:
        writer: The worker's slots.
    """

    def __init__(self, writer: SlotWriter) -> None:
        self._writer = writer
        self._known: dict[Any, Layout] = {}
        self._views: dict[tuple[int, int], list[torch.Tensor]] = {}

    def place(self, batch: Any) -> tuple[Layout, bool] | None:
        """Bring a batch into the slot; returns its layout, and whether it is a new one.

        Returns None, and leaves the slot as it was, if the batch is of another kind or has no room.
        """
        leaves: list[torch.Tensor] = []
        try:
            shape = _describe(batch, leaves)
        except RecursionError:
            # A batch that contains itself, which pickle knows to handle.
            return None
        if shape is None or not leaves or len(set(map(id, leaves))) < len(leaves):
            return None
        writer = self._writer
        offsets = [writer.offset_of(leaf.data_ptr(), leaf.nbytes) for leaf in leaves]
        kinds = [(leaf.dtype, leaf.shape) for leaf in leaves]
        key = (shape, tuple(kinds), tuple(offsets), writer.used_bytes)
        layout = self._known.get(key)
        is_new = layout is None
        if layout is None:
            if len(self._known) >= _MOST_LAYOUTS:
                return None
            layout = self._make(batch, leaves, offsets)
        if not writer.extend_to(layout.used_bytes):
            return None
        self._copy(layout, leaves)
        # Last: the parent counts the layouts of which it has been told.
        self._known[key] = layout
        return layout, is_new

    def _make(self, batch: Any, leaves: list[torch.Tensor], offsets: list[int | None]) -> Layout:
        used = self._writer.used_bytes
        references, moved = [], []
        for position, (leaf, offset) in enumerate(zip(leaves, offsets, strict=True)):
            at = offset
            if at is None:
                at = aligned(used)
                used = at + leaf.nbytes
                moved.append(position)
            references.append(Reference(at, leaf.dtype, tuple(leaf.shape)))
        # Before the layout is known: what cannot be pickled has none.
        pickled = pickle.dumps(_replace(batch, iter(references)), pickle.HIGHEST_PROTOCOL)
        return Layout(len(self._known), pickled, references, used, moved)

    def _copy(self, layout: Layout, leaves: list[torch.Tensor]) -> None:
        writer = self._writer
        small = []
        for position in layout.moved:
            leaf = leaves[position]
            if not leaf.nbytes:
                continue
            if leaf.nbytes >= _LARGE_BYTES or len(layout.moved) < _TOGETHER_FROM:
                to = writer.address(layout.references[position].offset)
                writer.copy(to, leaf.data_ptr(), leaf.nbytes)
            else:
                small.append(position)
        if small:
            views = self._views_of(layout, small)
            torch._foreach_copy_(views, [leaves[position] for position in small])

    def _views_of(self, layout: Layout, positions: list[int]) -> list[torch.Tensor]:
        """Tensors over the slot into which those of a batch are copied."""
        key = (self._writer.address(0), layout.number)
        views = self._views.get(key)
        if views is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            references = [layout.references[position] for position in positions]
            views = [self._writer.tensor(r.offset, r.dtype, r.shape) for r in references]
            self._views[key] = views
        return views


def _describe(part: Any, leaves: list[torch.Tensor]) -> Any:
    """Return the nesting of a batch as something to compare, or None; collects its tensors."""
    kind = type(part)
    if kind is torch.Tensor:
        if not is_plain(part) or not part.is_contiguous():
            return None
        leaves.append(part)
        return True
    if kind is dict:
        kinds = tuple(map(type, part))
        # Others may be equal to one another without being the same.
        if not _KEYS.issuperset(kinds):
            return None
        values = [_describe(each, leaves) for each in part.values()]
        return None if None in values else (kind, tuple(part), kinds, tuple(values))
    if kind is list or kind is tuple:
        values = [_describe(each, leaves) for each in part]
        return None if None in values else (kind, tuple(values))
    return None


def _replace(part: Any, leaves: Any) -> Any:
    if type(part) is torch.Tensor:
        return next(leaves)
    if type(part) is dict:
        return {key: _replace(each, leaves) for key, each in part.items()}
    return type(part)(_replace(each, leaves) for each in part)
