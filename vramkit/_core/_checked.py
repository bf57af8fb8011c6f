"""Integers on their way into the core, each held against its C type.

ctypes takes an integer modulo the range of its type: without the check a request of 2**64 + 5
bytes would serve 5. The check cannot be a ``from_param`` of ctypes, which turns whatever is raised
there, by a signal handler too, into an ``ArgumentError``.
"""

import ctypes
import operator
from dataclasses import dataclass
from typing import Any, SupportsIndex

from vramkit.errors import CapacityError, InvalidArgumentError

_INTEGERS: dict[type, tuple[int, int]] = {
    ctypes.c_uint64: (0, 2**64 - 1),
    ctypes.c_int64: (-(2**63), 2**63 - 1),
    ctypes.c_uint32: (0, 2**32 - 1),
    ctypes.c_int32: (-(2**31), 2**31 - 1),
    ctypes.c_void_p: (0, 2**64 - 1),
}


@dataclass(frozen=True)
class Integer:
    """An integer argument of a function of the core.

    Attributes:
        name: What it is, for the error's text.
        kind: Its C type.
    """

    name: str
    kind: type

    def check(self, value: SupportsIndex) -> int:
        """The value as an integer that fits.

        Raises:
            TypeError: ``value`` is no integer.
            CapacityError: It does not fit, and is a pool's capacity.
            InvalidArgumentError: It does not fit, and is anything else.
        """
        number = operator.index(value)
        lowest, highest = _INTEGERS[self.kind]
        if lowest <= number <= highest:
            return number
        error = CapacityError if self.name == "capacity_bytes" else InvalidArgumentError
        raise error(
            f"{self.name} must be between {lowest:,} and {highest:,}, which is all that the core "
            f"can count, got {number:,}"
        )


@dataclass(frozen=True)
class Address(Integer):
    """An address: an integer, or what ctypes takes for a pointer."""

    kind: type = ctypes.c_void_p

    def check(self, value: Any) -> Any:
        """The value, checked if it is an integer.

        Raises:
            InvalidArgumentError: It does not fit.
        """
        return super().check(value) if hasattr(value, "__index__") else value


class CheckedStructure(ctypes.Structure):
    """A struct whose integer members are checked when they are set."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a member.

        Raises:
            TypeError: It is of the wrong type.
            CapacityError: It does not fit, and is a pool's capacity.
            InvalidArgumentError: It does not fit, and is anything else.
        """
        kind = dict(field[:2] for field in self._fields_).get(name)
        if kind in _INTEGERS:
            value = Integer(name, kind).check(value)
        super().__setattr__(name, value)
