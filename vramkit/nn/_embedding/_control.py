"""What the nodes of autograd in C++ must know of a table, and what may change at any time."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vramkit.nn._embedding._table import Table

# As csrc/bind/torch/adapter_node_gradients.h numbers them; the rest of the optimizer's rule follows
# the learning rate.
_HELD, _REPLACED, _UPDATES, _RATE = range(4)


class Control:
    """Numbers that Python and C++ share, without a call of an operator to write one.

    Args:
        lr: The learning rate.
        rule: Of the optimizer besides: the rate's decay, two betas, epsilon.
    """

    def __init__(self, lr: float, rule: tuple[float, float, float, float]) -> None:
        self._numbers = array("d", (0.0, 0.0, 0.0, lr, *rule))
        # Whoever holds it keeps the native table alive, nodes in C++ too.
        self.control = torch.frombuffer(self._numbers, dtype=torch.float64)

    def own(self, table: Table, native: Any) -> None:
        """Keep ``native`` as long as the numbers are needed; :func:`table_of` finds the table."""
        self.control.vramkit_table = weakref.ref(table)  # type: ignore[attr-defined]
        self.control.vramkit_native = native  # type: ignore[attr-defined]

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self._numbers[_RATE]

    @lr.setter
    def lr(self, value: float) -> None:
        self._numbers[_RATE] = value

    @property
    def rule(self) -> Sequence[float]:
        """The learning rate, its decay, two betas and epsilon, as ``tables_update`` takes them."""
        return self._numbers[_RATE:]

    @property
    def held(self) -> bool:
        """Whether ``accumulate()`` collects the gradients."""
        return self._numbers[_HELD] != 0

    @held.setter
    def held(self, value: bool) -> None:
        self._numbers[_HELD] = value

    @property
    def is_replaced(self) -> bool:
        """Whether the module has another table now."""
        return self._numbers[_REPLACED] != 0

    @is_replaced.setter
    def is_replaced(self, value: bool) -> None:
        self._numbers[_REPLACED] = value

    @property
    def updates(self) -> int:
        """How often the table has been updated."""
        return int(self._numbers[_UPDATES])

    def count_update(self) -> None:
        """Count an update that Python has made."""
        self._numbers[_UPDATES] += 1


def table_of(control: Tensor) -> Table | None:
    """Return the table whose numbers these are; None if it is gone."""
    table: Table | None = control.vramkit_table()  # type: ignore[attr-defined]
    return table
