"""Fetches batches in this process, and puts them into staging memory if they are to move on."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import _DatasetKind
from torch.utils.data import dataloader as _torch

from vramkit.loader import _dataset_state
from vramkit.loader._arena import Arena
from vramkit.loader._quick_next import QuickNext
from vramkit.loader._slot_writer import StreamCopy
from vramkit.loader._staged import stage
from vramkit.loader._taken import Taken

_TorchIterator: Any = _torch._SingleProcessDataLoaderIter


def make_fetch(loader: Any, arena: Arena | None, copy: StreamCopy) -> Callable[[Any], Any]:
    """Return what fetches the batch of one index.

    Args:
        loader: The loader.
        arena: Staging memory for the batches, or None to leave them where they are.
        copy: How tensors are copied to it.
    """
    fetcher = _DatasetKind.create_fetcher(
        loader._dataset_kind,
        loader.dataset,
        loader._auto_collation,
        loader.collate_fn,
        loader.drop_last,
    )
    if arena is None:
        return fetcher.fetch  # type: ignore[no-any-return]
    return lambda index: stage(fetcher.fetch(index), arena, copy)


class InlineIterator(Taken, QuickNext, _TorchIterator):  # type: ignore[misc]
    """PyTorch's single-process iterator, with its batches put into staging memory.

    Args:
        loader: The loader, or a view of it.
        arena: Staging memory for the batches, or None to leave them where they are.
        copy: How tensors are copied to it.
        state: What an iterable dataset goes on from.
    """

    def __init__(
        self, loader: Any, arena: Arena | None, copy: StreamCopy, state: bytes | None = None
    ) -> None:
        super().__init__(loader)
        if state is not None:
            _dataset_state.give_back(state, self._dataset_fetcher)
        self._pin_memory = False
        self._stage = None if arena is None else (arena, copy)
        self._profile_name = "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__"

    def take_state(self) -> bytes | None:
        """Return the state of an iterable dataset after the last batch, or None without one."""
        return _dataset_state.take(self._dataset_fetcher)

    def _next_index(self) -> Any:
        index = super()._next_index()
        self.take()
        return index

    def _next_data(self) -> Any:
        data = super()._next_data()
        return data if self._stage is None else stage(data, *self._stage)
