"""How an operator's allocations are written down: what it takes and drops inside, in order.

A rule is a function of the call that returns a plan, a list of the steps below. Results that
the plan does not name are born first when it names none, and last otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vramkit.estimate._target import Target


@dataclass(frozen=True, slots=True)
class Take:
    """A block that the operator drops again before it returns."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Drops the blocks that were taken last, the last one first.

    Attributes:
        count: How many.
        below: How many later ones stay.
    """

    count: int = 1
    below: int = 0


@dataclass(frozen=True, slots=True)
class Give:
    """The birth of a result.

    Attributes:
        output: Its number.
        size_bytes: Bytes of its storage, where that is larger than the fake one's; else None.
    """

    output: int
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """A workspace that a library keeps from its first use in a thread on.

    Attributes:
        library: Its name.
        size_bytes: Bytes of the workspace.
        once: Whether all threads share it.
    """

    library: str
    size_bytes: int
    once: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """A result that takes no device memory although the fake one is on the device."""

    output: int


Step = Take | Drop | Give | Keep | Host
Plan = Sequence[Step]


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        name: The operator's name with its overload, such as ``aten::sum.dim_IntList``.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: The results, one after the other; None where a result is missing.
        target: The GPU.
        assume: Called with the bytes that a formula gives where nothing was measured, and with the
            name under which ``vramkit calibrate`` measures them.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]
    target: Target
    assume: Callable[[int, str], None]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument, wherever it was given."""
        if place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, default)


Rule = Callable[[Call], Plan]


def scratch(*sizes: int) -> list[Step]:
    """Blocks that are taken one after the other and dropped together.

    >>> scratch(8, 0, 16)
    [Take(size_bytes=8), Take(size_bytes=16), Drop(count=2, below=0)]
    """
    taken: list[Step] = [Take(size) for size in sizes if size > 0]
    return [*taken, Drop(len(taken))] if taken else []


def size_of(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's memory is channels-last and not also contiguous."""
    if tensor.dim() != 4 or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last)
