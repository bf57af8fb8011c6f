"""Gathers the rows of a dataset's arrays into batches."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from vramkit._core import Gatherer, Piece, Plan, Segment
from vramkit.errors import InvalidArgumentError, PoolClosedError, SystemCallError, VramkitError
from vramkit.loader._arena import Arena
from vramkit.loader._columns import Column, columns_of
from vramkit.loader._packing import ALIGNMENT, Shape
from vramkit.loader._registered_rows import Part, RegisteredRows, RowCopies
from vramkit.loader._staged import Reference, Staged, empty_batch, empty_batch_within, lay_out

# Smaller batches get memory of their own: a slot would cost more than it saves.
_SLOT_FROM_BYTES = 1 << 16
# Columns in the same order: the order, their positions, and the plan for them.
_PlanOfGroup = tuple[torch.Tensor | None, list[int], Plan]
# More threads gain nothing (docs/design/loader.md), and training needs cores too.
_MOST_THREADS = 10


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

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # Not in a forked child, nor once the interpreter has ended the threads: nothing is copied
        # then, and modules may be gone.
        if is_ending():
            return
        while self._tickets:
            # Each on its own: one that was waited for before an interrupt is known no longer.
            with contextlib.suppress(VramkitError):
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
        registered: The columns whose rows the GPU may copy itself, where batches go to one.
    """

    def __init__(
        self, structure: Any, arena: Arena, registered: RegisteredRows | None = None
    ) -> None:
        self._structure = structure
        self._columns = columns_of(structure)
        self._arena = arena
        self._has_warned = False
        self._registered = registered
        self._near, self._far = list(range(len(self._columns))), []
        if registered is not None:
            self._far = registered.positions
            self._near = [each for each in self._near if each not in self._far]
        self._plans = self._plans_of(list(range(len(self._columns))))
        self._near_plans = self._plans_of(self._near) if self._far else self._plans
        self._far_plans = self._plans_of(self._far)
        self._row_bytes = sum(column.row_bytes for column in self._columns)
        self._whole = all(column.tensor is not None for column in self._columns)

    def _plans_of(self, positions: list[int]) -> list[_PlanOfGroup]:
        groups: dict[int, list[int]] = {}
        for position in positions:
            if self._columns[position].row_bytes:
                groups.setdefault(id(self._columns[position].order), []).append(position)
        return [
            (self._columns[each[0]].order, each, Plan([_piece(self._columns[at]) for at in each]))
            for each in groups.values()
        ]

    def begin(self) -> None:
        """An epoch begins: register the memory of rows that the GPU copies."""
        if self._registered is not None:
            self._registered.begin()

    def prepare(self, count: int, rows: int) -> None:
        """Make staging memory for so many batches of so many rows.

        Raises:
            SystemCallError: There is no memory for it.
        """
        staged = self._columns
        if self._gpu_copies:
            staged = [self._columns[each] for each in self._near]
        row_bytes = sum(column.row_bytes for column in staged)
        if not row_bytes:
            return
        rows = min(rows, self._columns[0].rows)
        batch_bytes = rows * row_bytes + ALIGNMENT * len(staged)
        budget = self._arena.budget_bytes
        if count * batch_bytes > budget and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{count} batches of {batch_bytes:,} bytes are on their way to the GPU at once: "
                f"{count * batch_bytes:,} bytes of staging memory, more than staging_bytes="
                f"{budget}. Lower prefetch_batches or batch_size, or raise staging_bytes",
                RuntimeWarning,
                stacklevel=2,
            )
        self._arena.prepare(count, batch_bytes)

    @property
    def _gpu_copies(self) -> bool:
        """Whether the GPU copies large rows itself now."""
        return self._registered is not None and not self._registered.reason

    def _select(self, indices: torch.Tensor) -> Selected | None:
        """Make a small batch at once; for it, PyTorch's own operator costs least."""
        try:
            tensors = []
            for column in self._columns:
                rows = _rows_of(column.order, indices)
                tensors.append(torch.index_select(column.tensor, 0, rows))  # type: ignore[arg-type]
        except (IndexError, NotImplementedError):
            # An index out of range, or a dtype that the operator does not know.
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
        if stage and self._registered is not None and self._gpu_copies:
            return self._start_apart(indices, self._registered)
        layout = self._layout(range(len(self._columns)), count)
        place = None
        # In a forked child, the slots are the parent's.
        if self._arena.process == os.getpid():
            if stage:
                place = empty_batch(self._arena, layout)
            elif count * self._row_bytes >= _SLOT_FROM_BYTES:
                # Without memory for a slot there may still be some elsewhere.
                with contextlib.suppress(SystemCallError):
                    place = empty_batch_within(self._arena, layout)
        if place is not None:
            lease, references, used = place
            addresses = [lease.slot.address + each.offset for each in references]
            batch: Any = Staged(lease, _collated(self._structure, iter(references)), used)
        else:
            tensors = [torch.empty(shape, dtype=dtype, device="cpu") for dtype, shape in layout]
            addresses = [each.data_ptr() for each in tensors]
            batch = _collated(self._structure, iter(tensors))
        return self._gather(batch, self._plans, addresses, indices)

    def _gather(
        self,
        batch: Any,
        plans: list[_PlanOfGroup],
        addresses: Sequence[int] | dict[int, int],
        indices: torch.Tensor,
    ) -> Job | None:
        gatherer = _gatherer_of(os.getpid())
        job = Job(gatherer, batch, self._columns)
        for order, positions, plan in plans:
            try:
                rows = _rows_of(order, indices)
                targets = [addresses[each] for each in positions]
                job.add(plan.submit(gatherer, targets, rows.data_ptr(), len(indices)))
            except (InvalidArgumentError, IndexError, PoolClosedError):
                # The last: the interpreter is about to end, and the threads have ended.
                return None
        return job

    def _start_apart(self, indices: torch.Tensor, registered: RegisteredRows) -> Job | None:
        """Gather the small rows, and leave the large ones to the GPU."""
        references: dict[int, Reference] = {}
        lease, addresses, used = None, {}, 0
        if self._near:
            lease, near, used = empty_batch(self._arena, self._layout(self._near, len(indices)))
            references.update(zip(self._near, near, strict=True))
            addresses = {at: lease.slot.address + each.offset for at, each in references.items()}
        far, end = lay_out(self._layout(self._far, len(indices)), used)
        references.update(zip(self._far, far, strict=True))
        parts = []
        for group in self._far_plans:
            part = self._part(group, references, indices)
            if part is None:
                return None
            parts.append(part)
        copies = RowCopies(registered, parts, end, lambda: self._by_threads(indices))
        leaves = iter([references[at] for at in range(len(self._columns))])
        batch = Staged(lease, _collated(self._structure, leaves), used, copies)
        return self._gather(batch, self._near_plans, addresses, indices)

    def _part(
        self, group: _PlanOfGroup, references: dict[int, Reference], indices: torch.Tensor
    ) -> Part | None:
        """The rows of columns in one order; None if an index is out of range."""
        order, positions, plan = group
        low, high = torch.aminmax(indices)
        column = self._columns[positions[0]]
        if low < 0 or high >= column.rows:
            return None
        rows = _rows_of(order, indices)
        return Part(plan, [references[each].offset for each in positions], rows)

    def _by_threads(self, indices: torch.Tensor) -> Any:
        """Gather a batch that the GPU cannot copy after all."""
        job = self.start(indices, stage=True)
        assert job is not None
        return job.result()

    def _layout(self, positions: Iterable[int], count: int) -> list[tuple[torch.dtype, Shape]]:
        chosen = [self._columns[each] for each in positions]
        return [(column.dtype, (count, *column.shape)) for column in chosen]


def _rows_of(order: torch.Tensor | None, indices: torch.Tensor) -> torch.Tensor:
    """The rows of samples; an index is out of range also if it counts from the end."""
    return indices if order is None else torch.index_select(order, 0, indices)


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
