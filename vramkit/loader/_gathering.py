"""Gathers the rows of a data set's arrays into batches."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch

from vramkit._core import Gatherer, Piece, Plan, Segment
from vramkit.errors import InvalidArgumentError, VramkitError
from vramkit.loader._arena import Arena
from vramkit.loader._arrays import Column, columns_of
from vramkit.loader._packing import ALIGNMENT
from vramkit.loader._staged import Staged, empty_batch

# Smaller batches get memory of their own: a slot would cost more than it saves.
_SLOT_FROM_BYTES = 1 << 16
# More threads gain nothing (docs/design/loader.md), and training needs cores too.
_MOST_THREADS = 12


@functools.lru_cache(maxsize=1)
def _gatherer_of(process: int) -> Gatherer:
    return Gatherer(max(1, min(_MOST_THREADS, len(os.sched_getaffinity(process)) - 1)))


class Job:
    """A batch that is being gathered. Its memory is in use until it is over."""

    def __init__(self, gatherer: Gatherer, batch: Any, sources: object) -> None:
        self._gatherer = gatherer
        self._batch = batch
        self._sources = sources
        self._tickets: list[int] = []

    def add(self, ticket: int) -> None:
        """Note a part of the work."""
        if ticket:
            self._tickets.append(ticket)

    def done(self) -> bool:
        """Whether the batch is there."""
        return all(self._gatherer.done(ticket) for ticket in self._tickets)

    def result(self) -> Any:
        """Wait for the batch and return it."""
        while self._tickets:
            # In pieces, so that Python's signal handlers run.
            if self._gatherer.wait(self._tickets[-1], 0.1):
                self._tickets.pop()
        return self._batch

    def __del__(self) -> None:
        # Not in a forked child, nor once the interpreter has ended the threads: nothing is copied
        # then.
        with contextlib.suppress(VramkitError):
            while self._tickets:
                self._gatherer.wait(self._tickets.pop())


class Selected:
    """A batch that is there already."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def done(self) -> bool:
        """It is."""
        return True

    def result(self) -> Any:
        """Return it."""
        return self._batch


class Gathering:
    """Makes batches of the rows that an index list names.

    Args:
        structure: What :func:`find_arrays` returned.
        arena: Staging memory for the batches.
    """

    def __init__(self, structure: Any, arena: Arena) -> None:
        self._structure = structure
        self._columns = columns_of(structure)
        self._arena = arena
        self._row_bytes = sum(column.row_bytes for column in self._columns)
        self._plans = [
            (order, positions, Plan([_piece(self._columns[each]) for each in positions]))
            for order, positions in _by_order(self._columns)
        ]
        self._whole = all(column.tensor is not None for column in self._columns)

    def prepare(self, count: int, rows: int) -> None:
        """Make staging memory for so many batches of so many rows.

        Raises:
            SystemCallError: There is no memory for it.
        """
        padding = ALIGNMENT * len(self._columns)
        self._arena.prepare(count, rows * self._row_bytes + padding)

    def _select(self, indices: torch.Tensor) -> Selected | None:
        """Make a small batch at once; for it, PyTorch's own operator costs least."""
        try:
            tensors = []
            for column in self._columns:
                rows = indices if column.order is None else column.order[indices]
                tensors.append(torch.index_select(column.tensor, 0, rows))  # type: ignore[arg-type]
        except IndexError:
            return None
        return Selected(_collated(self._structure, iter(tensors)))

    def start(self, indices: torch.Tensor, *, stage: bool) -> "Job | Selected | None":
        """Begin to gather a batch; returns None if an index is out of range.

        Args:
            indices: int64, of one dimension.
            stage: Put the batch into staging memory, however small it is.

        Raises:
            SystemCallError: There is no memory for the batch.
        """
        count = len(indices)
        if not stage and self._whole and count * self._row_bytes < _SLOT_FROM_BYTES:
            return self._select(indices)
        layout = [(column.dtype, (count, *column.shape)) for column in self._columns]
        # In a forked child, the slots are the parent's.
        may_stage = self._arena.process == os.getpid()
        if may_stage and (stage or count * self._row_bytes >= _SLOT_FROM_BYTES):
            lease, references, used = empty_batch(self._arena, layout)
            addresses = [lease.slot.address + each.offset for each in references]
            batch: Any = Staged(lease, _collated(self._structure, iter(references)), used)
        else:
            tensors = [torch.empty(shape, dtype=dtype, device="cpu") for dtype, shape in layout]
            addresses = [each.data_ptr() for each in tensors]
            batch = _collated(self._structure, iter(tensors))
        gatherer = _gatherer_of(os.getpid())
        job = Job(gatherer, batch, self._columns)
        for order, positions, plan in self._plans:
            try:
                rows = indices if order is None else order[indices]
                targets = [addresses[each] for each in positions]
                job.add(plan.submit(gatherer, targets, rows.data_ptr(), count))
            except (InvalidArgumentError, IndexError):
                return None
        return job


def _by_order(columns: list[Column]) -> Iterator[tuple[torch.Tensor | None, list[int]]]:
    groups: dict[int, list[int]] = {}
    for position, column in enumerate(columns):
        if column.row_bytes:
            groups.setdefault(id(column.order), []).append(position)
    for positions in groups.values():
        yield columns[positions[0]].order, positions


def _piece(column: Column) -> Piece:
    first, segments = 0, []
    for segment in column.segments:
        segments.append(Segment(segment.address, first, segment.rows))
        first += segment.rows
    return Piece(segments, column.row_bytes, column.segments[0].row_stride_bytes)


def _collated(structure: Any, leaves: Iterator[Any]) -> Any:
    """The structure that ``default_collate`` gives samples of this structure."""
    if isinstance(structure, Column):
        return next(leaves)
    if isinstance(structure, dict):
        return {key: _collated(part, leaves) for key, part in structure.items()}
    return [_collated(part, leaves) for part in structure]
