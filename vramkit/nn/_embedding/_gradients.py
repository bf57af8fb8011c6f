"""Gradients of tables between a backward pass and the update at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd import Variable

from vramkit.errors import TableUsageError
from vramkit.nn._embedding._control import table_of
from vramkit.nn._embedding._request import NATIVE_ERRORS, Request, own_error
from vramkit.nn._node import has_native_nodes

if TYPE_CHECKING:
    from vramkit.nn._embedding._table import Table

# The operators that the nodes in C++ call.
_NATIVE = ("tables_insert", "tables_update")
# Tensors of a request.
_ASKED = 3


class Gradients:
    """Gradients of tables that one native call can update: the same device, the same operators."""

    __slots__ = ("__weakref__", "_parts", "_plan", "_streams", "_tables")

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._plan: list[int] = []
        self._tables: dict[Table, None] = {}
        # CUDA's numbers of streams, and the first part that each has made.
        self._streams: list[tuple[int, int]] = []

    def add(self, table: Table, parts: Sequence[Tensor], plan: Sequence[int]) -> None:
        """Keep the gradient of a lookup: tensors and integers as ``tables_update`` takes them."""
        grad = parts[0]
        if grad.is_cuda:
            stream = torch._C._cuda_getCurrentRawStream(grad.get_device())
            if not self._streams or self._streams[-1][0] != stream:
                self._streams.append((stream, len(self._parts)))
        self._parts += parts
        self._plan += plan
        self._tables[table] = None

    def update(self, factor: float = 1.0) -> None:
        """Update the rows of all tables, with the gradients multiplied by a factor."""
        if not self._parts:
            return
        self._wait()
        numbers: list[float] = []
        for table in self._tables:
            numbers += (*table.rule, factor)
        operators: Any = next(iter(self._tables)).operators
        try:
            operators.tables_update.default(self._parts, self._plan, numbers)
        except NATIVE_ERRORS as err:
            raise own_error(err) from None
        for table in self._tables:
            table.count_update()

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


def keep(grad: Tensor, request: Request, found: Sequence[Tensor]) -> None:
    """Keep the gradient of a lookup for the update, which comes when the running pass ends.

    In a table that collects gradients, it comes with the end of ``accumulate()``.

    Raises:
        TableUsageError: The module has got other rows since forward.
    """
    table = request.table
    parts = [grad, request.ids, request.bounds, request.weights, *found]
    plan = [table.number, request.mode, request.by_frequency]
    kind = native_kind(table)
    if kind is not None:
        torch.ops.vramkit.keep_table_gradient.default(kind, table.control, parts, plan)
    elif table.held or table.is_replaced:
        _hold(table.control, parts, plan)
    else:
        _of_running_pass(table).add(table, parts, plan)


def native_kind(table: Table) -> int | None:
    """Return the number by which the nodes in C++ know the operators of a table.

    None where these nodes are missing.
    """
    if table.kind is None and has_native_nodes():
        names = (getattr(table.operators, name).default.name() for name in _NATIVE)
        table.kind = torch.ops.vramkit.kind_of_tables.default(*names)
    return table.kind


def _of_running_pass(table: Table) -> Gradients:
    key = (torch._C._current_graph_task_id(), table.place)
    gradients = _running.get(key)
    if gradients is None:
        gradients = _running[key] = Gradients()
        Variable._execution_engine.queue_callback(gradients.update)
    return gradients


def _hold(control: Tensor, parts: Sequence[Tensor], plan: Sequence[int]) -> None:
    """Take a gradient that the running pass may not apply, from C++ too.

    What the caller may own is copied, as it is kept beyond the pass: batches, and gradients that
    backward() is given, may be written into the same memory.
    """
    table = table_of(control)
    if table is None or table.is_replaced:
        raise TableUsageError(
            "the rows of the table have been loaded, converted or drawn anew since forward, and "
            "the gradient is that of the former ones; call forward again before backward"
        )
    owned = [of.clone() for of in parts[: 1 + _ASKED]]
    table.kept.add(table, (*owned, *parts[1 + _ASKED :]), plan)


def _raise_error(kind: str, text: str) -> None:
    """Raise the error of a native operator that C++ has called, as one that Python has called."""
    types: dict[str, type[Exception]] = {of.__name__: of for of in NATIVE_ERRORS}
    raise own_error(types[kind](text))


_LIBRARY = torch.library.Library("vramkit", "FRAGMENT")
_LIBRARY.define("hold_table_gradient(Tensor control, Tensor[] parts, int[] plan) -> ()")
_LIBRARY.impl("hold_table_gradient", _hold, "CompositeExplicitAutograd")
_LIBRARY.define("raise_table_error(str kind, str text) -> ()")
_LIBRARY.impl("raise_table_error", _raise_error, "CompositeImplicitAutograd")
