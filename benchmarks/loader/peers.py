"""Peers besides PyTorch's loader: each takes part where it is installed and applies.

- ``timm_style``: PyTorch's loader, and the next batch crosses to the GPU on a stream of its own
  while the training works on this one, as timm's ``PrefetchLoader`` does it.
- ``tensordict``: batches of PyTorch's loader, pinned and moved by threads of ``TensorDict.to``.
- ``spdl``: SPDL's processes and threads.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.loader.contestants import Maker, epochs_of, to_device
from benchmarks.loader.spdl_peer import spdl

TENSORDICT_THREADS = 4


@dataclass(frozen=True)
class Peer:
    """A way to make a loader, the packages that it needs, and whether it needs a GPU."""

    make: Maker
    packages: tuple[str, ...] = ()
    needs_gpu: bool = True

    def reason_absent(self, *, on_gpu: bool) -> str | None:
        """Say why the peer cannot take part, or return None if it can."""
        if self.needs_gpu and not on_gpu:
            return "needs a GPU"
        # A module cannot be looked for in a package that is missing, so the first one ends it.
        for name in self.packages:
            if find_spec(name) is None:
                return f"needs {name}, which is not installed"
        return None


def timm_style(
    dataset: Any, options: dict[str, Any], *, on_gpu: bool
) -> tuple[Any, Generator[Any, None, None]]:
    """Make PyTorch's loader with a prefetcher on a side stream."""
    loader: Any = DataLoader(dataset, pin_memory=True, **options)
    return loader, _prefetched(epochs_of(loader))


def _prefetched(batches: Iterator[Any]) -> Generator[Any, None, None]:
    side = torch.cuda.Stream()
    ready = to_device(next(batches), "cuda")
    for batch in batches:
        # The memory of an earlier batch may be used again only after the work on it.
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            moved = to_device(batch, "cuda")
        yield ready
        torch.cuda.current_stream().wait_stream(side)
        ready = moved


def tensordict(
    dataset: Any, options: dict[str, Any], *, on_gpu: bool
) -> tuple[Any, Generator[Any, None, None]]:
    """Make PyTorch's loader, whose batches tensordict pins and moves."""
    loader: Any = DataLoader(dataset, **options)
    return loader, _moved_by_tensordict(epochs_of(loader))


def _moved_by_tensordict(batches: Iterator[Any]) -> Generator[Any, None, None]:
    from tensordict import TensorDict

    for batch in batches:
        parts = batch if isinstance(batch, dict) else {str(n): part for n, part in enumerate(batch)}
        held = TensorDict(parts, batch_size=[])
        moved = held.to("cuda", non_blocking_pin=True, num_threads=TENSORDICT_THREADS)
        yield dict(moved.items())


PEERS = {
    "timm_style": Peer(timm_style),
    "tensordict": Peer(tensordict, ("tensordict",)),
    "spdl": Peer(spdl, ("spdl", "spdl.pipeline", "spdl.io"), needs_gpu=False),
}
