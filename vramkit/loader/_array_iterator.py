"""Batches gathered from the arrays of a dataset, without calling the dataset at all."""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils.data import _DatasetKind
from torch.utils.data import dataloader as _torch

from vramkit.loader._gathering import Gathering
from vramkit.loader._indices import as_indices, tensor_batches
from vramkit.loader._quick_next import QuickNext
from vramkit.loader._taken import Taken

_TorchIterator: Any = _torch._BaseDataLoaderIter


class _Job(Protocol):
    """A batch that is being made."""

    def done(self) -> bool:
        """Whether it is there."""

    def result(self) -> Any:
        """Wait for it and return it, or raise what was raised instead."""


# Batches that are being gathered besides those that are delivered.
_SPARE_JOBS = 2


class _Fetched:
    """A batch that the arrays could not give: PyTorch's way gives it, or its error."""

    def __init__(self, fetch: Callable[[Any], Any], index: Any) -> None:
        self._fetch, self._index = fetch, index

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        index = self._index
        return self._fetch(index.tolist() if isinstance(index, torch.Tensor) else index)


class _Failed:
    """A batch that could not be begun: its error is raised when it is asked for."""

    def __init__(self, error: Exception) -> None:
        self._error: Exception | None = error

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        error, self._error = self._error, None
        assert error is not None
        try:
            raise error
        finally:
            del error


class ArrayIterator(Taken, QuickNext, _TorchIterator):  # type: ignore[misc]
    """Yields batches of the rows that the sampler names.

    Indices are drawn when PyTorch's iterators would draw them: with ``num_workers=0`` when a batch
    is asked for, else ``num_workers * prefetch_factor`` batches ahead.

    Args:
        loader: The loader.
        gathering: Gathers the rows.
        depth: How many batches are delivered before they are asked for.
        slots: Slots of batches that are delivered, if all move on from staging memory, else 0.
    """

    def __init__(self, loader: Any, gathering: Gathering, depth: int, slots: int) -> None:
        super().__init__(loader)
        self._pin_memory = False
        self._gathering = gathering
        self._stage = slots > 0
        self._batch_size = loader.batch_size
        drawn = (loader.prefetch_factor or 0) * loader.num_workers
        self._eager = drawn > 0
        self._most_drawn = max(drawn, depth + _SPARE_JOBS if depth else 0)
        self._most_jobs = min(self._most_drawn, depth + _SPARE_JOBS)
        self._fetcher = _DatasetKind.create_fetcher(
            _DatasetKind.Map, loader.dataset, True, loader.collate_fn, loader.drop_last
        )
        self._slots = self._most_jobs + slots
        self._drawn: deque[Any] = deque()
        self._jobs: deque[_Job] = deque()
        # PyTorch's iterator with workers asks the sampler anew before its first epoch, too.
        self._reset(loader) if self._eager else self._start()

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        self._start()

    def _start(self) -> None:
        self._jobs.clear()
        self._drawn.clear()
        self.taken = 0
        self._gathering.begin()
        if self._stage and self._batch_size is not None:
            # Memory is not pinned while training runs: kernels would wait.
            self._gathering.prepare(self._slots, self._batch_size)
        batches = tensor_batches(self._index_sampler)
        if batches is not None:
            self._sampler_iter = batches
        if self._eager:
            self._fill(self._most_drawn)

    def _fill(self, drawn: int) -> None:
        while len(self._drawn) + len(self._jobs) < drawn:
            try:
                self._drawn.append(self._next_index())
            except StopIteration:
                break
        while self._drawn and len(self._jobs) < max(1, self._most_jobs):
            self._jobs.append(self._job_or_failure(self._drawn.popleft()))

    def _job_or_failure(self, index: Any) -> _Job:
        try:
            return self._job(index)
        except Exception as err:  # noqa: BLE001 - raised when this batch is asked for
            return _Failed(err)

    def _job(self, index: Any) -> _Job:
        indices = as_indices(index)
        job = None
        # PyTorch refuses an empty batch.
        if indices is not None and len(indices):
            job = self._gathering.start(indices, stage=self._stage)
        return _Fetched(self._fetcher.fetch, index) if job is None else job

    def ready(self) -> bool:
        """Whether the next batch is there."""
        if not self._jobs:
            self._fill(self._most_drawn)
        return bool(self._jobs) and self._jobs[0].done()

    def _next_data(self) -> Any:
        if not self._most_drawn:
            index = self._next_index()
            self.take()
            return self._job(index).result()
        if not self._jobs:
            self._fill(1)
        if not self._jobs:
            raise StopIteration
        job = self._jobs.popleft()
        self.take()
        self._fill(self._most_drawn)
        return job.result()

    def _shutdown_workers(self) -> None:
        self._jobs.clear()
