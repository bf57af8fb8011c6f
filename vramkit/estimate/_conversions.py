"""``float(loss)`` and ``int(count)`` in the program's own files, which then give readings.

Python makes a plain number of whatever ``__float__`` returns, and nobody sees what a plain number
decides later. So the calls themselves are changed while a trace runs: in functions that are neither
Python's nor an installed package's, ``float(...)`` and ``int(...)`` call the functions below. Other
uses of the two names, such as ``isinstance(x, float)`` and ``dtype=float``, stay as they are.
Functions of ``math`` that such files have imported by name are exchanged for those of the trace.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import functools
import gc
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from vramkit.estimate import _readings

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
_BYTE = 8


class Conversions:
    """The functions whose calls were changed, and the names that were exchanged."""

    def __init__(self, exchanged: Mapping[Any, Any]) -> None:
        """Change none yet.

        Args:
            exchanged: Functions of libraries, and those that take their places.
        """
        self._exchanged = exchanged
        # By identity of the code before, and of the changed code: both; kept so that no id returns.
        self._after: dict[int, tuple[CodeType, CodeType]] = {}
        self._before: dict[int, tuple[CodeType, CodeType]] = {}
        self._functions: list[FunctionType] = []
        self._names: list[tuple[dict[str, Any], str, Any]] = []

    def change(self) -> None:
        """Change the calls in all functions of the program that exist now."""
        functions = [
            each
            for each in gc.get_objects()
            if type(each) is FunctionType and _is_own(each.__code__.co_filename)
        ]
        for function in functions:
            changed = self._changed(function.__code__)
            if changed is not function.__code__:
                self._functions.append(function)
                function.__code__ = changed
        for table in {id(each.__globals__): each.__globals__ for each in functions}.values():
            self._exchange(table)

    def restore(self) -> None:
        """Give the functions their code back, those too that were made by changed code."""
        changed = [each for each, _ in self._before.values()]
        made = gc.get_referrers(*changed) if changed else []
        for function in (*self._functions, *made):
            if type(function) is FunctionType and id(function.__code__) in self._before:
                function.__code__ = self._before[id(function.__code__)][1]
        for table, name, value in self._names:
            if table.get(name) is self._exchanged[value]:
                table[name] = value

    def _exchange(self, table: dict[str, Any]) -> None:
        for name, value in list(table.items()):
            if type(value) is _BUILTIN and value in self._exchanged:
                self._names.append((table, name, value))
                table[name] = self._exchanged[value]

    def _changed(self, code: CodeType) -> CodeType:
        if id(code) in self._before:
            return code
        if id(code) not in self._after:
            changed = self._change(code)
            self._after[id(code)] = code, changed
            if changed is not code:
                self._before[id(changed)] = changed, code
        return self._after[id(code)][1]

    def _change(self, code: CodeType) -> CodeType:
        before = code.co_consts
        constants = [self._changed(each) if isinstance(each, CodeType) else each for each in before]
        raw = bytearray(code.co_code)
        for instruction in dis.get_instructions(code) if _concerns(code) else ():
            if _loads_for_a_call(instruction):
                constants.append(_CONVERSIONS[instruction.argval])
                _load_constant(raw, instruction, len(constants) - 1)
        if len(constants) == len(before) and all(map(_is, constants, before)):
            return code
        return code.replace(co_code=bytes(raw), co_consts=tuple(constants))


@contextlib.contextmanager
def conversions_read(exchanged: Mapping[Any, Any]) -> Iterator[Conversions]:
    """Let ``float()`` and ``int()`` of tensors whose data is not known give readings.

    Args:
        exchanged: Functions of libraries, and those that take their places.
    """
    conversions = Conversions(exchanged)
    try:
        conversions.change()
        yield conversions
    finally:
        conversions.restore()


def _convert(kind: type[int | float], /, *args: Any, **options: Any) -> Any:
    number = args[0] if len(args) == 1 else None
    if isinstance(number, FakeTensor) and number.numel() == 1 and not number.is_complex():
        number = number.item()
    if isinstance(number, _readings.Text):
        number = number.reading
    if isinstance(number, _readings.Reading):
        return _readings.like(number, kind)
    return kind(*args, **options)


# Code that still runs after a trace, in a thread or a generator, may call these at any time.
_CONVERSIONS: dict[str, Callable[..., Any]] = {
    "float": functools.partial(_convert, builtins.float),
    "int": functools.partial(_convert, builtins.int),
}
_BUILTIN = type(len)


def _is(first: Any, second: Any) -> bool:
    return first is second


def _concerns(code: CodeType) -> bool:
    return not _CONVERSIONS.keys().isdisjoint(code.co_names)


@functools.cache
def _is_own(file: str) -> bool:
    return not file.startswith((*_NO_FILES, *_FOREIGN))


def _loads_for_a_call(instruction: dis.Instruction) -> bool:
    """Tell whether the global ``float`` or ``int`` is loaded to be called at once.

    The lowest bit of the argument says so from Python 3.11 on, and pushes a NULL besides.
    """
    return (
        instruction.opname == "LOAD_GLOBAL"
        and bool((instruction.arg or 0) & 1)
        and "NULL" in instruction.argrepr
        and instruction.argval in _CONVERSIONS
    )


def _load_constant(raw: bytearray, instruction: dis.Instruction, constant: int) -> None:
    """Load a constant and a NULL in the place of a global, its caches and the bytes before it."""
    start = instruction.offset - 2 * len(_higher_bytes(instruction.arg or 0))
    end = instruction.offset + 2
    while end < len(raw) and raw[end] == dis.opmap["CACHE"]:
        end += 2
    loads = [(dis.opmap["EXTENDED_ARG"], byte) for byte in _higher_bytes(constant)]
    loads.append((dis.opmap["LOAD_CONST"], constant & 0xFF))
    null = (dis.opmap["PUSH_NULL"], 0)
    # Python 3.13 pushes the NULL last.
    new = [*loads, null] if sys.version_info >= (3, 13) else [null, *loads]
    new += [(dis.opmap["NOP"], 0)] * ((end - start) // 2 - len(new))
    raw[start:end] = bytes(byte for pair in new for byte in pair)


def _higher_bytes(argument: int) -> bytes:
    """The bytes of an argument that stand before its instruction."""
    return argument.to_bytes(4, "big")[:3].lstrip(b"\0")
