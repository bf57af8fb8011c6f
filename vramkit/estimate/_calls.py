"""What programs call beside operators: statistics, random states, profilers, compiling."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.data
from torch.nn.parallel import comm
from torch.utils.data import dataloader

from vramkit.estimate._fake_device import exchanged, patched

_STATE_BYTES = 16
_MARKS = ("range_push", "range_pop", "range_start", "range_end", "mark")
_MEMORY = (
    "_record_memory_history",
    "_snapshot",
    "_dump_snapshot",
    "set_per_process_memory_fraction",
)


@contextlib.contextmanager
def calls_of_programs() -> Iterator[None]:
    """Answer such calls without a GPU, without compiling and without processes for data."""
    state = {
        "get_rng_state": lambda *_args, **_options: _random_state(),
        "get_rng_state_all": lambda: [_random_state()],
        **dict.fromkeys(("set_rng_state", "set_rng_state_all"), _nothing),
        "initial_seed": lambda: 0,
    }
    memory: dict[str, Any] = {
        **dict.fromkeys(_MEMORY, _nothing),
        "memory_stats": lambda *_args, **_options: collections.defaultdict(int),
        "memory_snapshot": lambda *_args, **_options: [],
        "memory_summary": lambda *_args, **_options: "",
    }
    with contextlib.ExitStack() as scope:
        for module, answers in (
            (torch.cuda, state),
            (torch.cuda.random, state),
            (torch.cuda, {name: answer for name, answer in memory.items() if name[0] != "_"}),
            (torch.cuda.memory, memory),
            (torch.cuda.nvtx, dict.fromkeys(_MARKS, _nothing)),
            (comm, {"scatter": _scatter}),
        ):
            scope.enter_context(exchanged(module, **answers))
        for kind, methods in (
            (torch.autograd.profiler.profile, {"__init__": _profile_function()}),
            (torch.utils.data.DataLoader, {"_get_iterator": _iterator}),
        ):
            scope.enter_context(patched(kind, **methods))
        # Compiled functions run as they were written.
        scope.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


def _random_state() -> torch.Tensor:
    return torch.zeros(_STATE_BYTES, dtype=torch.uint8, device="cpu")


def _profile_function() -> Callable[..., None]:
    """Only the host is profiled."""
    real = torch.autograd.profiler.profile.__init__

    def initialise(self: Any, *args: Any, **options: Any) -> None:
        real(self, *args, **{**options, "use_device": None})

    return initialise


def _scatter(tensor: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
    """The one device gets all of it."""
    return (tensor.to("cuda").narrow(0, 0, tensor.shape[0]),)


def _iterator(self: Any) -> Any:
    """Batches are made in this process, as others would not be followed."""
    alone = {"num_workers": 0, "timeout": 0}
    before = {name: self.__dict__[name] for name in alone}
    self.__dict__.update(alone)
    try:
        return dataloader._SingleProcessDataLoaderIter(self)
    finally:
        self.__dict__.update(before)
