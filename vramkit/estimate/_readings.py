"""Numbers that a step reads from tensors whose data is not known, such as ``loss.item()``.

A step may print such a number, average it, keep it, or scale a tensor with it: its memory is the
same for every value. What needs the value itself is refused: comparisons, conditions, sizes and
indices, and ``int()`` and ``float()`` outside the program's own files (``_conversions.py``). So
nothing is guessed, except that the numbers are finite, as they are while a training works; each
question for that is counted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, Self

import torch
from torch.utils._pytree import tree_leaves, tree_map

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import is_library, line_of_caller

# What a question for a number that is not finite is answered with.
FINITE = {"isfinite": True, "isnan": False, "isinf": False}


class Notes(Protocol):
    """Where a trace keeps what its numbers are used for."""

    def refuse(self, err: UntraceableError) -> None:
        """Keep a refusal, as the step may drop it."""

    def take_as_finite(self) -> None:
        """Count that the step asks whether a number is finite."""

    def decide(self) -> bool | None:
        """Return what a condition of PyTorch's own code is, where a rule says so."""


def _computes(kind: type[int | float]) -> Callable[..., Any]:
    """Arithmetic with an integer that is not known gives ``kind``; with others, floats."""

    def compute(self: Reading, *others: Any) -> Any:
        if not all(isinstance(other, Reading | int | float) for other in others):
            return NotImplemented
        of_floats = any(isinstance(each, float) for each in (self, *others))
        return like(self, float if of_floats else kind)

    return compute


def _refuses(what: str) -> Callable[..., Any]:
    def use(self: Reading, *_: Any) -> Any:
        self.refuse(what)

    return use


def _decides(what: str) -> Callable[..., bool]:
    def use(self: Reading, *_: Any) -> bool:
        decided = self.notes.decide()
        return self.refuse(what) if decided is None else decided

    return use


class Reading:
    """A number that depends on data.

    Attributes:
        line: Where it was read, as ``file:number``.
        notes: Where its uses are noted.
    """

    line: str
    notes: Notes

    def refuse(self, what: str) -> NoReturn:
        """Refuse a use of the number.

        Raises:
            UntraceableError: Always.
        """
        err = UntraceableError(
            f"{line_of_caller() or 'a place without Python code'} {what} a number that depends on "
            f"the data (it was read from a tensor at {self.line}), so the step's memory cannot be "
            "known; keep this out of the step, or pass guess='allow', on the command line --guess "
            "allow (the value counts as 1). Printing, adding and dividing such numbers is fine"
        )
        self.notes.refuse(err)
        raise err

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _computes(int)
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = _computes(int)
    __neg__ = __pos__ = __abs__ = _computes(int)
    __truediv__ = __rtruediv__ = _computes(float)
    __lt__ = __le__ = __gt__ = __ge__ = _decides("compares")
    __eq__ = __ne__ = _refuses("compares")
    __bool__ = _decides("branches on")
    __int__ = _refuses("makes an int of")
    __float__ = _refuses("makes a float of")
    __index__ = _refuses("takes as a size or an index")
    __divmod__ = __rdivmod__ = is_integer = as_integer_ratio = hex = _refuses("takes apart")

    def __hash__(self) -> int:
        """Refuse to be looked up, except by torch, which keeps what it computes by its inputs."""
        if not is_library(sys._getframe(1).f_code.co_filename):
            self.refuse("looks up")
        return object.__hash__(self)

    def __repr__(self) -> str:
        """Say that there is no value, as C code does that prints one."""
        return Text("nan", self)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        """Format a NaN."""
        try:
            return Text(format(math.nan, spec), self)
        except ValueError:  # a specification for integers
            return Text("nan", self)

    def conjugate(self) -> Reading:
        """Return the same number."""
        return self

    __copy__ = conjugate
    real = property(conjugate)

    def __deepcopy__(self, _: Any) -> Reading:
        """Return the same number."""
        return self

    def __round__(self, digits: int | None = None) -> Reading:
        """Return a number that is not known either."""
        return like(self, int if digits is None else float)

    def __trunc__(self) -> Reading:
        """Return a number that is not known either."""
        return like(self, int)

    __floor__ = __ceil__ = __trunc__

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **_: Any) -> Any:
        """Answer NumPy's functions of single numbers."""
        if method != "__call__" or any(getattr(each, "ndim", 0) for each in inputs):
            self.refuse("gives NumPy")
        return self.answer(function.__name__)

    def answer(self, function: str) -> Any:
        """What a function of the number gives: the truth about a finite one, or a number."""
        if function not in FINITE:
            return like(self, float)
        self.notes.take_as_finite()
        return FINITE[function]


class Text(str):
    """A number that depends on data as a text.

    Attributes:
        reading: The number.
    """

    __slots__ = ("reading",)
    reading: Reading

    def __new__(cls, text: str, reading: Reading) -> Self:
        """Make a text of a number."""
        made = super().__new__(cls, text)
        made.reading = reading
        return made

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Keep the text alone."""
        return str, (str.__str__(self),)


class ReadFloat(Reading, float):  # type: ignore[misc]
    """A floating-point number that depends on data; C code that takes its value gets a NaN."""

    def __new__(cls) -> Self:
        """Make a NaN."""
        return super().__new__(cls, math.nan)


class ReadInteger(Reading):
    """An integer that depends on data; no ``int``, of which C code would take the value."""

    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _computes(int)
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __invert__ = _computes(int)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Let tensors compute with it; where it would be a size, torch reads it and is refused."""
        del types
        given, named = (tree_map(_as_tensor, each) for each in (args, kwargs or {}))
        try:
            return func(*given, **named)
        except TypeError:  # a size is no tensor
            for each in tree_leaves((args, kwargs or {})):
                if isinstance(each, ReadInteger):
                    each.refuse("takes as a size or an index")
            raise


def like(reading: Reading, kind: type[int | float]) -> Reading:
    """Return another number that is not known, read where the first one was."""
    return make(kind, reading.line, reading.notes)


def make(kind: type[int | float], line: str, notes: Notes) -> Reading:
    """Return a number that is not known."""
    made = ReadFloat() if kind is float else ReadInteger()
    made.line, made.notes = line, notes
    return made


def _as_tensor(leaf: Any) -> Any:
    """As a tensor without a dimension, which promotes others no more than a number does."""
    if isinstance(leaf, ReadInteger):
        return torch.empty((), dtype=torch.int64, device="cpu")
    return leaf
