"""What methods of fake tensors return to Python: numbers, lists, texts, arrays and copies."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_any, tree_map

from vramkit.errors import UntraceableError
from vramkit.estimate import _readings
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._fake_device import patched
from vramkit.estimate._shadow import Shadows

# Elements up to which tolist() returns numbers that are not known.
_MOST_LISTED = 1 << 16
# Functions of integers, and those that ask the number itself, need no help.
_ASK = ("ceil", "floor", "trunc", "comb", "perm", "factorial", "gcd", "lcm", "isqrt")
_REFUSED_OF_MATH = {"isclose": "compares", "frexp": "takes apart", "modf": "takes apart"}
_OF_MATH = tuple(name for name in dir(math) if callable(getattr(math, name)) and name[0] != "_")


@contextlib.contextmanager
def methods_of_fakes(
    shadows: Shadows, notes: _readings.Notes, *, may_guess: bool
) -> Iterator[dict[Any, Any]]:
    """Let fake tensors be read, listed, formatted and copied.

    Args:
        shadows: The values that are known.
        notes: Where uses of numbers that are not known are noted.
        may_guess: Whether a number is guessed when it is read, so that all of its uses work.

    Yields:
        Functions of ``math``, and what takes their places.
    """
    exchanged: dict[Any, Any] = {}
    with contextlib.ExitStack() as scope:
        scope.enter_context(patched(FakeTensor, __format__=_format, __deepcopy__=_deepcopy))
        scope.enter_context(patched(FakeTensor, tolist=_tolist_function(shadows)))
        scope.enter_context(patched(FakeTensor, numpy=_numpy_function(shadows)))
        if not may_guess:
            scope.enter_context(patched(FakeTensor, item=_item_function(notes)))
            functions = {name: _of_math(name) for name in _OF_MATH if name not in _ASK}
            exchanged = {getattr(math, name): function for name, function in functions.items()}
            scope.enter_context(patched(math, **functions))
            scope.enter_context(patched(statistics, fsum=functions["fsum"]))
        yield exchanged


def _item_function(notes: _readings.Notes) -> Callable[[Any], Any]:
    """``Tensor.item`` returns a number that says where it may not be used."""
    real = torch.Tensor.item

    def item(self: Any) -> Any:
        try:
            return real(self)
        except UntraceableError:
            if self.is_complex() or self.numel() != 1:
                raise
        kind = float if self.is_floating_point() else int
        return _readings.make(kind, line_of_caller(), notes)

    return item


def _tolist_function(shadows: Shadows) -> Callable[[Any], Any]:
    """``Tensor.tolist`` returns values where they are known, and otherwise numbers that are not."""

    def tolist(self: Any) -> Any:
        known = shadows.of(self)
        if known is not None:
            with _disable_current_modes():
                return known.tolist()
        if self.numel() > _MOST_LISTED:
            raise UntraceableError(
                f"{line_of_caller()} makes a list of {self.numel():,} numbers that depend on the "
                f"data; an estimated step can make lists of at most {_MOST_LISTED:,}"
            )
        number = self[(0,) * self.dim()].item() if self.numel() else 0
        for size in reversed(self.shape):
            number = [copy.deepcopy(number) for _ in range(size)]
        return number

    return tolist


def _format(self: Any, spec: str) -> str:
    if self.dim() == 0:
        return format(self.item(), spec)
    return object.__format__(self, spec)


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    """What ``Tensor.__deepcopy__`` does, which would copy a storage's data."""
    if id(self) in memo:
        return memo[id(self)]
    if not self.is_leaf:
        return torch.Tensor.__deepcopy__(self, memo)  # type: ignore[no-untyped-call]  # raises
    with torch.no_grad():
        new = _copy(self.detach())
    if isinstance(self, torch.nn.Parameter):
        new = torch.nn.Parameter(new, self.requires_grad)
    else:
        new.requires_grad_(self.requires_grad)
        if self.grad is not None:
            new.grad = _deepcopy(self.grad, memo)
    memo[id(self)] = new
    return new


def _copy(tensor: Any) -> Any:
    """A part of a larger storage is copied with all of it."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    if elements == tensor.numel():
        return tensor.clone()
    whole = tensor.new_empty(elements)
    return whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _numpy_function(shadows: Shadows) -> Callable[..., Any]:
    def numpy(self: Any, *, force: bool = False) -> Any:
        known = shadows.of(self)
        if known is None or (self.device.type != "cpu" and not force):
            raise UntraceableError(
                f"{line_of_caller()} makes a NumPy array of a tensor whose data is not known, so "
                "what follows from it cannot be known; for a number that is only logged use "
                "x.item() or float(x), and leave others out of the estimated step"
            )
        with _disable_current_modes():
            return known.numpy(force=force)

    return numpy


def _of_math(name: str) -> Callable[..., Any]:
    """Functions of C code would take the NaN."""
    real = getattr(math, name)

    def function(*args: Any, **options: Any) -> Any:
        args = tuple(list(each) if isinstance(each, Iterator) else each for each in args)
        for each in args:
            parts = each if isinstance(each, list | tuple) else (each,)
            for part in parts:
                if isinstance(part, _readings.Reading):
                    if name in _REFUSED_OF_MATH:
                        part.refuse(_REFUSED_OF_MATH[name])
                    return part.answer(name)
        return real(*args, **options)

    return function


def holds_readings(data: Any) -> bool:
    """Tell whether nested lists hold a number that is not known."""
    return tree_any(lambda leaf: isinstance(leaf, _readings.Reading), data)


def without_readings(data: Any) -> Any:
    """Return nested lists with numbers of the same types in place of those that are not known."""

    def value_of(leaf: Any) -> Any:
        if isinstance(leaf, _readings.Reading):
            return math.nan if isinstance(leaf, _readings.ReadFloat) else 0
        return leaf

    return tree_map(value_of, data)
