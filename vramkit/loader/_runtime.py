"""What a loader holds while it runs: staging memory, its stream, its open iterators."""

import os
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch

from vramkit.loader._arena import Arena
from vramkit.loader._batches import BatchIterator, Delivery, HostDelivery
from vramkit.loader._channels import Tally
from vramkit.loader._columns import Column
from vramkit.loader._device import CudaDelivery
from vramkit.loader._pinning import Pinning
from vramkit.loader._registered_rows import RegisteredRows
from vramkit.loader._resume import Epoch
from vramkit.loader._slot_memory import OwnMemory


class Runtime:
    """The part of a loader that belongs to one process and is never pickled.

    Args:
        loader: The loader, of which only options are read.
    """

    def __init__(self, loader: Any) -> None:
        self.process = os.getpid()
        self.tally = Tally()
        self.batches = 0
        self.wait_s = 0.0
        self.path, self.reason = "", ""
        self.epoch: Epoch | None = None
        self._iterators: weakref.WeakSet[BatchIterator] = weakref.WeakSet()
        self._arena: Arena | None = None
        self._own_arena: Arena | None = None
        self._delivery: Delivery | None = None
        self._registered: RegisteredRows | None = None
        self._device = loader.device
        self._pins = loader.pin_memory and torch.accelerator.is_available()
        self._transform = loader.transform
        self._depth = loader._depth
        self._staging_bytes = loader._staging_bytes
        self._warned: set[str] = set()
        self._told_refusal = False

    @property
    def on_gpu(self) -> bool:
        """Whether batches are delivered on a CUDA device."""
        return self._device is not None and self._device.type == "cuda"

    def arena(self) -> Arena:
        """Return the staging memory; made at the first call.

        Raises:
            SystemCallError: The system makes no memory file.
        """
        if self._arena is None:
            self._arena = Arena(self._staging_bytes, self._pinning())
        return self._arena

    def own_arena(self) -> Arena:
        """Return staging memory for batches that this process makes; made at the first call.

        Workers cannot see it. Batches that stay in pinned host memory lie in that of
        :meth:`arena`: a fork would copy pinned memory of this process at once.

        Raises:
            SystemCallError: The system makes no memory file.
        """
        if self._pins_staging and not self.on_gpu:
            return self.arena()
        if self._own_arena is None:
            memory = OwnMemory(inherited=not self.on_gpu)
            self._own_arena = Arena(self._staging_bytes, self._pinning(), memory)
        return self._own_arena

    @property
    def _pins_staging(self) -> bool:
        return self.on_gpu or (self._pins and torch.cuda.is_available())

    def _pinning(self) -> Pinning | None:
        return Pinning(self._device) if self._pins_staging else None

    def _arenas(self) -> list[Arena]:
        return [each for each in (self._arena, self._own_arena) if each is not None]

    def delivery(self) -> Delivery:
        """Return what brings batches to their place; made at the first call."""
        if self._delivery is None:
            if self.on_gpu:
                device = self._device
                if device.index is None:
                    device = torch.device("cuda", torch.cuda.current_device())
                self._delivery = CudaDelivery(device, self._transform, self._depth)
            else:
                self._delivery = HostDelivery(self._pins, self._transform, self._depth)
        return self._delivery

    def register(self, columns: list[Column]) -> RegisteredRows:
        """Return the columns whose rows the GPU copies; those of before are given back if others.

        Their memory is registered when an epoch begins.
        """
        delivery = self.delivery()
        assert isinstance(delivery, CudaDelivery)
        before = self._registered
        if before is None or not before.is_of(columns):
            if before is not None:
                before.release("the dataset has other arrays now")
            self._registered = RegisteredRows(columns, delivery.device.index, self._staging_bytes)
        assert self._registered is not None
        return self._registered

    def registered(self) -> tuple[int, str]:
        """Return how many bytes of the dataset are registered, and why not all large rows are."""
        held = self._registered
        return (0, "") if held is None else (held.size_bytes, held.reason)

    def settle(self) -> None:
        """Make the staging memory that the batches to come need; the first has been handed over."""
        for arena in self._arenas():
            arena.settle()

    def staging_in_use(self) -> tuple[int, int]:
        """Return the bytes of staging memory and how many of them are pinned."""
        arenas = self._arenas()
        return sum(each.capacity_bytes for each in arenas), sum(
            each.pinned_bytes for each in arenas
        )

    def watch(self, iterator: BatchIterator) -> None:
        """Note an iterator, to be ended with the loader."""
        self._iterators.add(iterator)

    def count(self, seconds: float) -> None:
        """Count a batch and the time for which the training loop waited."""
        self.batches += 1
        self.wait_s += seconds
        if self.tally.last_refusal and not self._told_refusal:
            self._told_refusal = True
            self.warn_once(
                "a batch found no room in staging memory and came PyTorch's way, which is slower: "
                f"{self.tally.last_refusal}. stats().refused_batches counts such batches"
            )

    def warn_once(self, text: str, stacklevel: int = 4) -> None:
        """Warn of a detour, once for each text."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)

    def close(self, why: str, *, wait: bool = True) -> None:
        """End all iterators and give all memory back.

        Args:
            why: What an iterator says that is asked for more.
            wait: Whether to wait for threads that fetch.
        """
        if os.getpid() != self.process:
            return
        for iterator in list(self._iterators):
            iterator.end(why, wait=wait)
        if isinstance(self._delivery, CudaDelivery):
            self._delivery.close()
        if self._registered is not None:
            self._registered.release(why)
        for arena in self._arenas():
            arena.close()

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the process the system takes everything back, and modules may be gone.
        if hasattr(self, "_iterators") and not is_ending():
            self.close("the loader is gone", wait=False)
