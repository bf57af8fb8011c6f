"""A native table: looking up, pending gradients, updates, copies."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Variable

import vramkit._ops  # noqa: F401 - loads the library that defines the native operators
from vramkit.errors import InvalidArgumentError, RowIndexError, TableFullError
from vramkit.nn._embedding._config import TableConfig

MODES = {"none": 0, "sum": 1, "mean": 2, "max": 3}
_OPS = torch.ops.vramkit


class Request(NamedTuple):
    """A batch of ids: flat int64, bounds of bags, float32 weights (empty where there are none)."""

    ids: Tensor
    bounds: Tensor
    weights: Tensor
    mode: int
    max_norm: float
    norm_type: float
    by_frequency: bool


class _Gradient(NamedTuple):
    """What an update takes of one forward pass, and the stream that made the gradient."""

    parts: list[Tensor]
    modes: list[int]
    stream: torch.cuda.Stream | None


class Facts(NamedTuple):
    """The counters of ``table_facts``."""

    rows: int
    bytes: int
    capacity: int
    evictions: int
    lookups: int
    hits: int
    steps: int
    clock: int
    host_bytes: int


def _on_host(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Make a tensor that native code reads, whatever the default device is."""
    return torch.tensor(values, dtype=dtype, device="cpu")


@contextmanager
def own_errors() -> Iterator[None]:
    """Turn the errors of the native operators into vramkit's."""
    try:
        yield
    except IndexError as err:
        raise RowIndexError(str(err)) from None
    except MemoryError as err:
        raise TableFullError(str(err)) from None
    except ValueError as err:
        raise InvalidArgumentError(str(err)) from None


class Table:
    """Owns a native table. Copies and pickles hold its rows, not its number."""

    def __init__(self, config: TableConfig, lr: float) -> None:
        self.config = config
        self.lr = lr
        self.held = False
        self._side: torch.cuda.Stream | None = None
        self._ops = _OPS
        self._numbers: tuple[tuple[float, ...], Tensor] = (), torch.empty(0, device="cpu")
        self._pending: dict[int, list[_Gradient]] = {}
        self._here = torch.empty(0, dtype=torch.int64, device=config.device)
        integers, numbers = config.native()
        with own_errors():
            self.number: int = self._ops.table_create.default(
                self._here, _on_host(integers, torch.int64), _on_host(numbers, torch.float64)
            )
        weakref.finalize(self, self._ops.table_close.default, self._here, self.number)

    def read(self, request: Request) -> Tensor:
        """Look up without changing the table."""
        with own_errors():
            output: Tensor = self._ops.table_read.default(*self._arguments(request))
        return output

    def insert(self, request: Request) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Look up, giving a row to each id that has none; also return what an update needs."""
        self._drop_stale()
        with own_errors():
            found: tuple[Tensor, Tensor, Tensor, Tensor] = self._ops.table_insert.default(
                *self._arguments(request)
            )
        return found

    def _arguments(self, request: Request) -> tuple[Any, ...]:
        if request.ids.device != self._here.device:
            raise InvalidArgumentError(
                f"the ids are on {request.ids.device}, the table is on {self._here.device}; move "
                "one of them"
            )
        return (
            *(request.ids, request.bounds, request.weights, self.number, request.mode),
            *(self.config.output_dtype, request.max_norm, request.norm_type),
        )

    def weights_gradient(self, grad: Tensor, request: Request, distinct: Tensor) -> Tensor:
        """Return the gradient of the weights of a batch in bags."""
        result: Tensor = self._ops.table_weights_gradient.default(
            grad, request.ids, request.bounds, distinct, self.number
        )
        return result

    def add_gradient(self, grad: Tensor, request: Request, found: tuple[Tensor, ...]) -> None:
        """Keep a gradient until the running backward pass ends, and then update."""
        task = -1 if self.held else torch._C._current_graph_task_id()
        parts = [grad, request.ids, request.bounds, request.weights, *found]
        if task not in self._pending:
            self._pending[task] = []
            if not self.held:
                Variable._execution_engine.queue_callback(lambda: self._update(task))
        stream = torch.cuda.current_stream(grad.device) if grad.is_cuda else None
        modes = [request.mode, int(request.by_frequency)]
        self._pending[task].append(_Gradient(parts, modes, stream))

    def _drop_stale(self) -> None:
        # A backward pass that failed never came to its update.
        if self._pending and not self.held and torch._C._current_graph_task_id() == -1:
            self._pending.clear()

    def pending_norm(self) -> float:
        """Return the 2-norm of the gradients that are held."""
        if -1 not in self._pending:
            return 0.0
        parts, modes = self._joined(self._pending[-1])
        return float(self._ops.table_gradient_norm.default(parts, modes, self.number))

    def discard_held(self) -> None:
        """Forget the gradients that are held."""
        self._pending.pop(-1, None)

    def update_held(self, factor: float) -> None:
        """Update once with the gradients that are held, each multiplied by ``factor``."""
        if -1 in self._pending:
            self._update(-1, factor)

    def _update(self, task: int, factor: float = 1.0) -> None:
        parts, modes = self._joined(self._pending.pop(task))
        config = self.config
        numbers = (self.lr, config.lr_decay, *config.betas, config.eps, factor)
        if numbers != self._numbers[0]:
            self._numbers = numbers, _on_host(numbers, torch.float64)
        with own_errors():
            self._ops.table_update.default(parts, modes, self._numbers[1], self.number)

    def _joined(self, pending: list[_Gradient]) -> tuple[list[Tensor], Tensor]:
        for gradient in pending:
            if gradient.stream is not None:
                here = torch.cuda.current_stream(gradient.stream.device)
                if here != gradient.stream:
                    here.wait_stream(gradient.stream)
                    for part in gradient.parts:
                        if part.is_cuda:
                            part.record_stream(here)
        parts = [part for gradient in pending for part in gradient.parts]
        return parts, _on_host([gradient.modes for gradient in pending], torch.int64)

    def facts(self) -> Facts:
        """Return the counters."""
        return Facts(*self._ops.table_facts.default(self._here, self.number).tolist())

    def prefetch(self, ids: Tensor) -> None:
        """Bring the rows of ids to the device, on a stream of its own."""
        if ids.device != self._here.device:
            raise InvalidArgumentError(
                f"the ids are on {ids.device}, the table is on {self._here.device}; move one of "
                "them"
            )
        if not ids.is_cuda:
            self._ops.table_prefetch.default(ids, self.number)
            return
        if torch.cuda.is_current_stream_capturing():
            raise InvalidArgumentError(
                "prefetch() cannot be captured in a CUDA graph; call it before the capture"
            )
        if self._side is None:
            self._side = torch.cuda.Stream(ids.device)
        here = torch.cuda.current_stream(ids.device)
        self._side.wait_stream(here)
        # The table's next call waits for this one on the device, on whatever stream it is made.
        with torch.cuda.stream(self._side):
            has_graphs = self._ops.table_prefetch.default(ids, self.number)
        ids.record_stream(self._side)
        if has_graphs:
            here.wait_stream(self._side)

    def dump(self, since: int = -1) -> list[Tensor]:
        """Return keys, rows, headers (scale, sum), state, stamps of rows changed after a clock."""
        dumped: list[Tensor] = self._ops.table_dump.default(self._here, self.number, since)
        return dumped

    def load(
        self, keys: Tensor, rows: Tensor, headers: Tensor, state: Tensor, stamps: Tensor
    ) -> None:
        """Store rows, given as float32, in the place of those with the same keys."""
        with own_errors():
            given = (keys, rows, headers, state, stamps)
            here = [part.to(self._here.device) for part in given]
            self._ops.table_load.default(*here, self.number)

    def resume(self, steps: int, clock: int) -> None:
        """Continue with the counters of a checkpoint."""
        self._ops.table_resume.default(
            self._here, _on_host([steps, clock], torch.int64), self.number
        )

    def check(self) -> None:
        """Raise an error if the native structures contradict each other."""
        with own_errors():
            self._ops.table_check.default(self._here, self.number)

    def __getstate__(self) -> dict[str, Any]:
        from vramkit.nn._embedding._checkpoint import state_of

        return {"config": self.config, "lr": self.lr, "state": state_of(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from vramkit.nn._embedding._checkpoint import fill

        self.__init__(state["config"], state["lr"])  # type: ignore[misc]
        fill(self, state["state"])
