"""Gradients of tables between a backward pass and the update at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd import Variable

from vramkit.errors import TableUsageError
from vramkit.nn._embedding._request import NATIVE_ERRORS, Request, own_error

if TYPE_CHECKING:
    from vramkit.nn._embedding._table import Table


class Gradients:
    """Gradients of tables that one native call can update: the same device, the same operators."""

    __slots__ = ("__weakref__", "_parts", "_plan", "_streams", "_tables")

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._plan: list[int] = []
        self._tables: dict[Table, None] = {}
        # CUDA's numbers of streams, and the first part that each has made.
        self._streams: list[tuple[int, int]] = []

    def add(self, grad: Tensor, request: Request, found: tuple[Tensor, ...]) -> None:
        """Keep the gradient of a lookup.

        What the caller owns is copied where it is kept beyond the pass: batches may be read into
        the same memory.
        """
        if grad.is_cuda:
            stream = torch._C._cuda_getCurrentRawStream(grad.get_device())
            if not self._streams or self._streams[-1][0] != stream:
                self._streams.append((stream, len(self._parts)))
        asked = [request.ids, request.bounds, request.weights]
        if request.table.held:
            asked = [of.clone() for of in asked]
        self._parts += (grad, *asked, *found)
        self._plan += (request.table.number, request.mode, request.by_frequency)
        self._tables[request.table] = None

    def update(self, factor: float = 1.0) -> None:
        """Update the rows of all tables, with the gradients multiplied by a factor."""
        if not self._parts:
            return
        self._wait()
        numbers: list[float] = []
        for table in self._tables:
            numbers += (table.lr, *table.rule, factor)
        operators: Any = next(iter(self._tables)).operators
        try:
            operators.tables_update.default(self._parts, self._plan, numbers)
        except NATIVE_ERRORS as err:
            raise own_error(err) from None
        for table in self._tables:
            table.updates += 1

    def norm(self) -> float:
        """Return the 2-norm of the gradient of the one table that there is."""
        if not self._parts:
            return 0.0
        self._wait()
        operators = next(iter(self._tables)).operators
        return float(operators.table_gradient_norm.default(self._parts, self._plan))

    def _wait(self) -> None:
        """Have the current stream wait for those that made the gradients."""
        if not self._streams:
            return
        device = self._parts[0].device
        current = torch._C._cuda_getCurrentRawStream(self._parts[0].get_device())
        ends = [*(begin for _, begin in self._streams[1:]), len(self._parts)]
        for (number, begin), end in zip(self._streams, ends, strict=True):
            if number == current:
                continue
            here = torch.cuda.current_stream(device)
            here.wait_stream(_stream_of(number, device))
            for part in self._parts[begin:end]:
                if part.is_cuda:
                    part.record_stream(here)


def _stream_of(number: int, device: torch.device) -> torch.cuda.Stream:
    """Return the stream that CUDA knows by a number."""
    if number == 0:
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(number, device)


# Of the running backward passes. Autograd's engine holds the values until they have ended, also
# where they fail: nothing of such a pass is left.
_running: WeakValueDictionary[tuple[int, str], Gradients] = WeakValueDictionary()


def gradients_of(table: Table) -> Gradients:
    """Return where the running backward pass keeps the gradients of a table.

    The update comes when the pass ends, or with that of ``accumulate()``.

    Raises:
        TableUsageError: The module has got other rows since forward.
    """
    if table.is_replaced:
        raise TableUsageError(
            "the rows of the table have been loaded, converted or drawn anew since forward, and "
            "the gradient is that of the former ones; call forward again before backward"
        )
    if table.held:
        return table.kept
    key = (torch._C._current_graph_task_id(), table.place)
    gradients = _running.get(key)
    if gradients is None:
        gradients = _running[key] = Gradients()
        Variable._execution_engine.queue_callback(gradients.update)
    return gradients
