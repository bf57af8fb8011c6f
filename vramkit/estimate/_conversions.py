"""``float(loss)`` and ``int(count)`` in the program's own files, which then give readings.

Python makes a plain number of whatever ``__float__`` returns, and nobody sees what a plain number
decides later. So the calls themselves are changed while a trace runs: in functions that are neither
Python's nor an installed package's, ``float(...)`` and ``int(...)`` call the functions below. Other
uses of the two names, such as ``isinstance(x, float)`` and ``dtype=float``, stay as they are.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import functools
import gc
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from vramkit.estimate import _readings
from vramkit.estimate._fake_device import patched

_OWN = {"float": "_vramkit_float", "int": "_vramkit_int"}
_LARGEST_ARGUMENT = 255
# Of Python itself, and of functions that libraries write, such as those of dataclasses.
_NO_FILES = ("<frozen", "<string>")
_FOREIGN = tuple(
    f"{place}/"
    for place in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *(str(Path(module.__file__ or "").parent) for module in (torch,)),
        str(Path(__file__).parents[1]),
    }
)


class Conversions:
    """The functions whose calls were changed."""

    def __init__(self, start: Callable[..., Any]) -> None:
        """Change none yet.

        Args:
            start: Where the program begins; what it refers to is its own, too.
        """
        self._start = start
        # By identity of the changed code: it, and the code before; kept so that no id returns.
        self._before: dict[int, tuple[CodeType, CodeType]] = {}

    def change(self) -> None:
        """Change the calls in all functions of the program that exist now."""
        for function in _own_functions(self._start):
            if id(function.__code__) not in self._before:
                function.__code__ = self._changed(function.__code__)

    def restore(self) -> None:
        """Give the functions their code back, those too that were made by changed code."""
        changed = [each for each, _ in self._before.values()]
        for function in gc.get_referrers(*changed) if changed else ():
            if type(function) is FunctionType and id(function.__code__) in self._before:
                function.__code__ = self._before[id(function.__code__)][1]

    def _changed(self, code: CodeType) -> CodeType:
        constants = tuple(
            self._changed(each) if isinstance(each, CodeType) else each for each in code.co_consts
        )
        names = code.co_names + tuple(_OWN.values())
        raw = bytearray(code.co_code)
        for instruction in dis.get_instructions(code) if _concerns(code) else ():
            if _loads_for_a_call(instruction):
                argument = names.index(_OWN[instruction.argval]) << 1 | 1
                if argument <= _LARGEST_ARGUMENT:
                    raw[instruction.offset + 1] = argument
        inside = any(new is not old for new, old in zip(constants, code.co_consts, strict=True))
        if bytes(raw) == code.co_code and not inside:
            return code
        changed = code.replace(co_code=bytes(raw), co_names=names, co_consts=constants)
        self._before[id(changed)] = changed, code
        return changed


@contextlib.contextmanager
def conversions_read(start: Callable[..., Any]) -> Iterator[Conversions]:
    """Let ``float()`` and ``int()`` of tensors whose data is not known give readings.

    Args:
        start: Where the program begins.
    """
    functions = {
        own: functools.partial(_convert, getattr(builtins, name)) for name, own in _OWN.items()
    }
    conversions = Conversions(start)
    with patched(builtins, **functions):
        conversions.change()
        try:
            yield conversions
        finally:
            conversions.restore()


def _convert(kind: type[int | float], *args: Any, **options: Any) -> Any:
    number = args[0] if len(args) == 1 else None
    if isinstance(number, FakeTensor) and number.numel() == 1 and not number.is_complex():
        number = number.item()
    if isinstance(number, _readings.Reading):
        return _readings.like(number, kind)
    return kind(*args, **options)


def _own_functions(start: Callable[..., Any]) -> Iterator[FunctionType]:
    """Functions in modules of the program, and those that these and ``start`` refer to."""
    seen: dict[int, Any] = {}
    todo = [start, *sys.modules.values()]
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, FunctionType):
            if _is_own(each.__code__.co_filename):
                yield each
                todo += _cells(each)
                if id(each.__globals__) not in seen:
                    seen[id(each.__globals__)] = each.__globals__
                    todo += each.__globals__.values()
        elif isinstance(each, ModuleType | type):
            todo += vars(each).values() if _is_own(_file_of(each)) else ()
        else:
            todo += [type(each), *_inside(each)]


def _cells(function: FunctionType) -> list[Any]:
    found = [getattr(function, "__wrapped__", None)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            found.append(cell.cell_contents)
    return found


def _inside(each: Any) -> list[Any]:
    """What wraps functions in classes and arguments."""
    if isinstance(each, functools.partial):
        return [each.func, *each.args]
    if isinstance(each, property):
        return [each.fget]
    if isinstance(each, staticmethod | classmethod | MethodType):
        return [each.__func__]
    return []


def _file_of(each: ModuleType | type) -> str:
    module = sys.modules.get(each.__module__) if isinstance(each, type) else each
    return getattr(module, "__file__", None) or "<string>"


def _concerns(code: CodeType) -> bool:
    return not _OWN.keys().isdisjoint(code.co_names)


@functools.cache
def _is_own(file: str) -> bool:
    return not file.startswith((*_NO_FILES, *_FOREIGN))


def _loads_for_a_call(instruction: dis.Instruction) -> bool:
    """Tell whether the global ``float`` or ``int`` is loaded to be called at once.

    The lowest bit of the argument says so from Python 3.11 on, and pushes a NULL besides.
    """
    argument = instruction.arg or 0
    return (
        instruction.opname == "LOAD_GLOBAL"
        and bool(argument & 1)
        and "NULL" in instruction.argrepr
        and argument <= _LARGEST_ARGUMENT
        and instruction.argval in _OWN
    )
