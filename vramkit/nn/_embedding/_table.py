"""A native table: making it, counters, copies."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import get_spawning_popen
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import vramkit.nn._embedding._fakes  # noqa: F401 - loads the native operators
from vramkit.errors import InvalidArgumentError
from vramkit.nn._embedding._config import ROW_TYPES, TableConfig
from vramkit.nn._embedding._control import Control
from vramkit.nn._embedding._gradients import Gradients
from vramkit.nn._embedding._history import History
from vramkit.nn._embedding._input import NOTHING
from vramkit.nn._embedding._request import (
    MODES,
    NATIVE_ERRORS,
    Request,
    check_device,
    own_error,
    read,
)

_OPS = torch.ops.vramkit
# After all clocks.
_NEVER = (1 << 63) - 1


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
    lost: int


class Dump(NamedTuple):
    """What ``table_dump`` returns of some rows, and, on the host, the steps and the clock."""

    keys: Tensor
    rows: Tensor
    headers: Tensor  # scale, sum
    state: Tensor
    stamps: Tensor
    present: Tensor
    counters: Tensor


def _on_host(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Make a tensor that native code reads, whatever the default device is."""
    return torch.tensor(values, dtype=dtype, device="cpu")


@contextmanager
def own_errors() -> Iterator[None]:
    """Turn the errors of the native operators into vramkit's."""
    try:
        yield
    except NATIVE_ERRORS as err:
        raise own_error(err) from None


def _close(operators: Any, here: Tensor, number: int) -> None:
    # Garbage may be collected while something traces.
    with _disable_current_modes():
        operators.table_close.default(here, number)


_living: weakref.WeakSet[Table] = weakref.WeakSet()


def _name_states() -> None:
    """Tell each history the state that a forked child will begin with."""
    with _disable_current_modes():
        for table in list(_living):
            # A forked child cannot use those on a CUDA device.
            if table.config.device.type == "cpu":
                table.history.at(table.facts().clock)


os.register_at_fork(before=_name_states)


class _Native:
    """Owns the number of a native table, which is closed with it."""

    def __init__(self, operators: Any, here: Tensor, number: int) -> None:
        weakref.finalize(self, _close, operators, here, number)


class Table(Control):
    """Owns a native table. Copies and pickles hold its rows, not its number."""

    def __init__(self, config: TableConfig, lr: float) -> None:
        # Of the optimizer, besides the learning rate: its decay, betas and epsilon.
        super().__init__(lr, (config.lr_decay, *config.betas, config.eps))
        self.config = config
        self.history = History()
        self._side: torch.cuda.Stream | None = None
        self.kept = Gradients()
        self.operators = _OPS
        # Tables of one place can be in one native call.
        self.place = f"{config.device} {id(_OPS)}"
        # By which nodes in C++ know the operators; none before the first training lookup.
        self.kind: int | None = None
        self.output_type = ROW_TYPES.index(config.output_dtype)
        self._here = torch.empty(0, dtype=torch.int64, device=config.device)
        integers, numbers = config.native()
        with own_errors():
            self.number: int = self.operators.table_create.default(
                self._here, _on_host(integers, torch.int64), _on_host(numbers, torch.float64)
            )
        self.own(self, _Native(self.operators, self._here, self.number))
        # By which lookups in evaluation know the table. On the CPU, a table that takes its place
        # takes it over, so that torch.compile's programs stay valid; on a CUDA device, CUDA graphs
        # hold addresses of its rows.
        self.name = self.number
        self._name: _Native | None = None
        if config.device.type == "cpu" and hasattr(self.operators, "table_name"):
            self.name = self._give_name(0)
            self._name = _Native(self.operators, self._here, self.name)
        _living.add(self)

    def _give_name(self, name: int) -> int:
        result: int = self.operators.table_name.default(self._here, name, self.number)
        return result

    def take_name(self, of: Table) -> None:
        """Be found by the name of another table from now on, where both may have one."""
        if self._name is not None and of._name is not None:
            self._give_name(of.name)
            self.name, self._name = of.name, of._name

    def leave_name(self) -> None:
        """Be found by the number only, as another table has the name."""
        self.name, self._name = self.number, None

    def read(self, ids: Tensor) -> Tensor:
        """Return the row of each id, without changing the table."""
        return read([Request(self, ids, NOTHING, NOTHING, MODES["none"], 0.0, 2.0, 0)])[0]

    def weights_gradient(self, grad: Tensor, request: Request, distinct: Tensor) -> Tensor:
        """Return the gradient of the weights of a batch in bags."""
        with own_errors():
            result: Tensor = self.operators.table_weights_gradient.default(
                grad, request.ids, request.bounds, distinct, self.number, request.mode
            )
        return result

    def pending_norm(self) -> float:
        """Return the 2-norm of the gradients that are held."""
        return self.kept.norm()

    def discard_held(self) -> None:
        """Forget the gradients that are held."""
        self.kept = Gradients()

    def update_held(self, factor: float) -> None:
        """Update once with the gradients that are held, each multiplied by ``factor``."""
        self.kept.update(factor)

    def facts(self) -> Facts:
        """Return the counters."""
        return Facts(*self.operators.table_facts.default(self._here, self.number).tolist())

    def prefetch(self, ids: Tensor) -> None:
        """Bring the rows of ids to the device, on a stream of its own."""
        check_device(ids, self._here.device)
        if not ids.is_cuda:
            self.operators.table_prefetch.default(ids, self.number)
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
            has_graphs = self.operators.table_prefetch.default(ids, self.number)
        ids.record_stream(self._side)
        if has_graphs:
            here.wait_stream(self._side)

    def dump(self, since: int = -1, *, with_present: bool = False) -> Dump:
        """Return the rows changed after a clock, and, if asked for, the keys of all rows."""
        return Dump(
            *self.operators.table_dump.default(self._here, self.number, since, with_present)
        )

    def keys(self) -> Tensor:
        """Return the ids that have a row."""
        return self.dump(_NEVER, with_present=True).present.to(self.config.device)

    def load(
        self, keys: Tensor, rows: Tensor, headers: Tensor, state: Tensor, stamps: Tensor
    ) -> None:
        """Store rows, given as float32, in the place of those with the same keys."""
        with own_errors():
            given = (keys, rows, headers, state, stamps)
            here = [part.to(self._here.device) for part in given]
            self.operators.table_load.default(*here, self.number)

    def resume(self, steps: int, clock: int) -> None:
        """Continue with the counters of a checkpoint."""
        self.operators.table_resume.default(
            self._here, _on_host([steps, clock], torch.int64), self.number
        )

    def check(self) -> None:
        """Raise an error if the native structures contradict each other."""
        with own_errors():
            self.operators.table_check.default(self._here, self.number)

    def __getstate__(self) -> dict[str, Any]:
        from vramkit.nn._embedding._checkpoint import state_of

        state: Any = state_of(self)
        if get_spawning_popen() is not None:
            # torch would pass on descriptors of tensors that are gone when the process starts.
            file = io.BytesIO()
            torch.save(state, file)
            state = file.getvalue()
        return {"config": self.config, "lr": self.lr, "state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from vramkit.nn._embedding._checkpoint import fill

        self.__init__(state["config"], state["lr"])  # type: ignore[misc]
        values = state["state"]
        fill(self, torch.load(io.BytesIO(values)) if isinstance(values, bytes) else values)
