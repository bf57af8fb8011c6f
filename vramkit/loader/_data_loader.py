"""``vramkit.DataLoader``."""

import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, IterableDataset, Sampler

from vramkit.errors import LoaderClosedError
from vramkit.loader import _arguments, _resume
from vramkit.loader._batches import BatchIterator
from vramkit.loader._resume import Done, Epoch
from vramkit.loader._runtime import Runtime
from vramkit.loader._sources import make_source
from vramkit.loader._stats import LoaderStats
from vramkit.loader._view import View

T_co = TypeVar("T_co", covariant=True)


class DataLoader(TorchDataLoader[T_co]):
    """A ``torch.utils.data.DataLoader`` that brings batches faster, also onto the GPU.

    All arguments, defaults, errors and the batches themselves are those of PyTorch's loader; with
    the same seed, the batches are the same in the same order. Only the way of the bytes differs:
    workers write into memory that they share with this process, and datasets that are arrays in
    memory are gathered without workers.

    Args:
        dataset: As for PyTorch's loader, like all arguments up to ``in_order``.
        batch_size: Samples in a batch.
        shuffle: Draw a new order in each epoch.
        sampler: Draws the indices of samples.
        batch_sampler: Draws the indices of batches.
        num_workers: Processes or threads that fetch.
        collate_fn: Makes a batch of a list of samples.
        pin_memory: Deliver batches in pinned memory.
        drop_last: Leave the last batch out if it is smaller.
        timeout: Seconds to wait for a batch of workers, 0 for ever.
        worker_init_fn: Called in each worker with its number.
        multiprocessing_context: How processes are started.
        generator: Draws the order and the workers' seeds.
        prefetch_factor: Batches that each worker fetches ahead.
        persistent_workers: Keep the workers between epochs.
        pin_memory_device: Deprecated by PyTorch.
        in_order: Deliver batches in the order of the sampler.
        device: Where batches are delivered. ``"cuda"`` moves them to the GPU ahead of time, on a
            stream of the loader's own; the stream that is current when a batch is asked for waits
            for the copy, the host does not. None leaves them in host memory.
        prefetch_batches: Batches on the device before they are asked for; 2 by default.
        workers: ``"process"`` or ``"thread"``. Threads share the process's random generators, so
            random batches differ from PyTorch's.
        transform: Called with each batch after it has been moved, on the loader's stream; returns
            the batch to deliver. Use it to cast and normalise on the GPU.
        staging_bytes: The most staging memory, in bytes or as ``"2GiB"``; a quarter of the
            machine's memory by default. Only what batches need is taken.

    Raises:
        ValueError: As PyTorch's loader; as ``InvalidArgumentError`` for the arguments from
            ``device`` on, or as ``ArgumentTypeError`` if they are of another type.
        UnsupportedDeviceError: ``device`` is not a CUDA device or the host, or is not there.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> import vramkit
        >>> data = TensorDataset(torch.arange(6.0))
        >>> with vramkit.DataLoader(data, batch_size=4) as loader:
        ...     [batch for (batch,) in loader]
        [tensor([0., 1., 2., 3.]), tensor([4., 5.])]
    """

    # Before PyTorch's __init__ has run.
    _runtime: Runtime | None = None
    _closed = False
    _pending: dict[str, Any] | None = None

    def __init__(
        self,
        dataset: Dataset[T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        device: torch.device | str | int | None = None,
        prefetch_batches: int | None = None,
        workers: str = "process",
        transform: Callable[[Any], Any] | None = None,
        staging_bytes: int | str | None = None,
    ) -> None:
        self._set_own_arguments(device, prefetch_batches, workers, transform, staging_bytes)
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            in_order=in_order,
        )

    def _set_own_arguments(
        self,
        device: torch.device | str | int | None,
        prefetch_batches: int | None,
        workers: str,
        transform: Callable[[Any], Any] | None,
        staging_bytes: int | str | None,
    ) -> None:
        # Under the names of the arguments, by which frameworks make a loader anew.
        self.device = _arguments.device_of(device)
        self.prefetch_batches = prefetch_batches
        self.workers = _arguments.workers_of(workers)
        self.transform = _arguments.transform_of(transform)
        self.staging_bytes = staging_bytes
        self._depth = _arguments.depth_of(prefetch_batches, self.device)
        self._staging_bytes = _arguments.staging_of(staging_bytes)

    def __iter__(self) -> Any:
        """Begin an epoch, or go on with the one whose state was loaded.

        Raises:
            LoaderClosedError: The loader has been closed.
        """
        if self._closed:
            raise LoaderClosedError("the loader is closed; make a new one to iterate again")
        runtime = self._runtime_here()
        if self._pending is not None:
            source, epoch = self._resume(self._pending)
            self._pending = None
        else:
            seeded = not self.persistent_workers or self._iterator is None
            epoch = Epoch(
                _resume.random_states(self),
                seeded=seeded,
                sampler=_resume.sampler_state(self),
            )
            source = super().__iter__()
        if isinstance(self.dataset, IterableDataset):
            # Held on purpose: the state may be asked for after a loop was left.
            epoch.take_state = getattr(source, "take_state", None)
        runtime.epoch = epoch
        iterator = BatchIterator(source, runtime.delivery(), epoch, runtime.count, runtime.settle)
        runtime.watch(iterator)
        return iterator

    def check_worker_number_rationality(self) -> None:
        """Warn of more worker processes than there are cores, as PyTorch's loader does."""
        if self.workers == "process":
            super().check_worker_number_rationality()

    def _get_iterator(self) -> Any:
        return make_source(self, self._runtime_here())

    def _resume(self, state: dict[str, Any]) -> tuple[Any, Epoch]:
        """Make the source of an epoch that another loader has begun."""
        _resume.load_sampler_state(self, state["sampler"])
        if not state["in_epoch"]:
            return self._begin(state, _resume.random_states(self), draws_seed=state["seeded"])
        if _resume.has_drawn_nothing(state, self):
            return self._begin(state, state["random"], draws_seed=False)
        done = Done(state["batches_yielded"], state.get("yielded_ahead", ()))
        iterable = isinstance(self.dataset, IterableDataset)
        instead: dict[str, Any] = {}
        if not iterable:
            instead["_index_sampler"] = _resume.SkippingSampler(self._index_sampler, done)
        if not state["seeded"]:
            # That epoch drew no seed for workers.
            instead["generator"] = torch.Generator()
        states, first_worker = _resume.states_of(state, self.num_workers)
        with _resume.random_as(self, state["random"]):
            view = View(self, **instead)
            source = make_source(view, self._runtime_here(), states, first_worker)
            if done.total or state["num_workers"]:
                # Without workers, the sampler had drawn nothing before the first batch.
                _draw_first(source)
            if iterable and not states:
                # What the dataset draws in this process belongs to the past epoch, too.
                _skip(source, done.total)
        self._keep(source)
        epoch = Epoch(state["random"], seeded=state["seeded"], sampler=state["sampler"], done=done)
        epoch.states, epoch.last_worker = states, (first_worker or self.num_workers) - 1
        return source, epoch

    def _begin(
        self, state: dict[str, Any], random: dict[str, Any], *, draws_seed: bool
    ) -> tuple[Any, Epoch]:
        """Make the source of an epoch of which no index has been drawn."""
        _resume.set_own(self, state["random"])
        epoch = Epoch(random, seeded=state["seeded"], sampler=state["sampler"])
        if draws_seed:
            return super().__iter__(), epoch
        # The workers' seed was drawn before the state was taken, or there is none to draw.
        source = make_source(View(self, generator=torch.Generator()), self._runtime_here())
        self._keep(source)
        return source, epoch

    def _keep(self, source: Any) -> None:
        """Let an iterator that was made of a view serve the epochs to come, if workers persist."""
        source._index_sampler = self._index_sampler
        if self.persistent_workers and self.num_workers > 0:
            self._iterator = source

    def _runtime_here(self) -> Runtime:
        if self._runtime is None or self._runtime.process != os.getpid():
            # In a forked child, persistent workers are the parent's.
            self._iterator = None
            self._runtime = Runtime(self)
        return self._runtime

    def state_dict(self) -> dict[str, Any]:
        """Return where the latest epoch stands, as tensors, numbers and texts.

        It counts batches that were yielded, not those that were prefetched. The call copies
        nothing large, so it may be made at every step. Restore the process's own random generators
        (``torch.set_rng_state``) yourself, as for everything else that draws from them.
        """
        if self._pending is not None:
            return dict(self._pending)
        runtime = self._runtime
        return _resume.to_dict(None if runtime is None else runtime.epoch, self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration go on where the state says.

        For map-style datasets the number of workers may differ from before. An iterable dataset
        needs as many as before; it goes on from its own state if it has one by the convention of
        torchdata, and is else iterated anew from its beginning up to that place.

        Raises:
            InvalidArgumentError: The state is of another kind, of another batch size or number of
                samples, or of another number of workers with an iterable dataset.
        """
        _resume.check(state_dict)
        _resume.check_fits(state_dict, self)
        self._pending = dict(state_dict)
        if self._iterator is not None:
            # Persistent workers are in another epoch.
            shutdown = getattr(self._iterator, "_shutdown_workers", None)
            if shutdown is not None:
                shutdown()
            self._iterator = None

    def stats(self) -> LoaderStats:
        """Return what the loader has done and how; see :class:`vramkit.loader.LoaderStats`."""
        runtime = self._runtime_here()
        staging, pinned = runtime.staging_in_use()
        registered, not_registered = runtime.registered()
        return LoaderStats(
            path=runtime.path,
            reason=runtime.reason,
            batches=runtime.batches,
            wait_s=runtime.wait_s,
            fetch_s=runtime.tally.fetch_s,
            staged_bytes=runtime.tally.staged_bytes,
            staging_bytes=staging,
            pinned_bytes=pinned,
            registered_bytes=registered,
            not_registered=not_registered,
            refused_batches=runtime.tally.refused_batches,
            last_refusal=runtime.tally.last_refusal,
        )

    def close(self) -> None:
        """End workers and iterators and give staging memory back; may be repeated.

        Batches that were delivered stay valid. Iterating afterwards raises an error.
        """
        self._closed = True
        self._iterator = None
        if self._runtime is not None:
            self._runtime.close(
                "the loader is closed, and its iterators with it; make a new loader"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # What runs belongs to this process and this object.
        return self.__dict__ | {"_runtime": None}


def _draw_first(source: Any) -> None:
    """Let the sampler draw now what it draws at its first batch."""
    drawn = source._sampler_iter
    try:
        first = next(drawn)
    except StopIteration:
        source._sampler_iter = iter(())
        return
    source._sampler_iter = itertools.chain([first], drawn)


def _skip(source: Any, count: int) -> None:
    """Take batches that were yielded before, or had raised."""
    for _ in range(count):
        try:
            next(source)
        except StopIteration:
            return
        except Exception:  # noqa: BLE001 - raised before, when the batch was asked for
            continue
    source.taken = 0
