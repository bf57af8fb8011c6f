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
import itertools
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
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
# What may hold a function in a class or around it.
_WRAPPERS = (
    *(property, staticmethod, classmethod, MethodType, functools.partial, functools.partialmethod),
    *(functools.cached_property, functools.singledispatchmethod, functools._lru_cache_wrapper),
    torch.nn.Module,
)
_CONTAINERS: tuple[Any, ...] = (dict, list, tuple, set, frozenset)
# Of containers with more members, nothing is looked at: they are data.
_MOST_MEMBERS = 10_000
_MOST_OBJECTS = 50_000


class Conversions:
    """The functions whose calls were changed, and the names that were exchanged."""

    def __init__(self, start: Callable[..., Any], exchanged: Mapping[Any, Any]) -> None:
        """Change none yet.

        Args:
            start: Where the program begins; what it refers to is its own, too.
            exchanged: Functions of libraries, and those that take their places.
        """
        self._start = start
        self._exchanged = exchanged
        # By identity of the code before, and of the changed code: both; kept so that no id returns.
        self._after: dict[int, tuple[CodeType, CodeType]] = {}
        self._before: dict[int, tuple[CodeType, CodeType]] = {}
        self._functions: list[FunctionType] = []
        self._names: list[tuple[dict[str, Any], str, Any]] = []

    def change(self) -> None:
        """Change the calls in all functions of the program that exist now."""
        functions = list(_own_functions(self._start))
        for function in functions:
            changed = self._changed(function.__code__)
            if changed is not function.__code__:
                self._functions.append(function)
                function.__code__ = changed
        for table in {id(each.__globals__): each.__globals__ for each in functions}.values():
            self._exchange(table)

    def restore(self) -> None:
        """Give the functions their code back, those too that were made by changed code."""
        made = gc.get_objects() if self._before else ()
        for function in itertools.chain(self._functions, made):
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
def conversions_read(
    start: Callable[..., Any], exchanged: Mapping[Any, Any]
) -> Iterator[Conversions]:
    """Let ``float()`` and ``int()`` of tensors whose data is not known give readings.

    Args:
        start: Where the program begins.
        exchanged: Functions of libraries, and those that take their places.
    """
    conversions = Conversions(start, exchanged)
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


def _own_functions(start: Callable[..., Any]) -> Iterator[FunctionType]:
    """Functions in modules of the program, and those that these and ``start`` refer to."""
    seen: dict[int, Any] = {}
    # The nearest first, as there may be more objects than can be asked in a short time: half of the
    # time is for what the program's beginning refers to.
    for share, roots in ((2, [start, *_held_by(start)]), (1, sys.modules.values())):
        todo = deque(roots)
        while todo and len(seen) < _MOST_OBJECTS // share:
            each = todo.popleft()
            if id(each) in seen:
                continue
            seen[id(each)] = each
            if type(each) is FunctionType and is_own(each.__code__.co_filename):
                yield each
            todo += _inside(each)


def _held_by(start: Callable[..., Any]) -> list[Any]:
    """Model, loss and others of a recipe, whose own class is vramkit's."""
    return list(getattr(getattr(start, "__self__", None), "__dict__", {}).values())


def _inside(each: Any) -> list[Any]:
    """What an object refers to, unless it is a library's; none of its own code runs."""
    kind = type(each)
    if kind is FunctionType:
        table = [each.__globals__] if is_own(each.__code__.co_filename) else []
        more = (each.__defaults__, each.__kwdefaults__, each.__dict__)
        return [*table, *more, *gc.get_referents(*(each.__closure__ or ()))]
    if issubclass(kind, ModuleType | type):
        return list(vars(each).values()) if is_own(_file_of(each)) else []
    for container in _CONTAINERS:
        if issubclass(kind, container) and container.__len__(each) > _MOST_MEMBERS:
            return []
    if issubclass(kind, (*_WRAPPERS, *_CONTAINERS)) or is_own(_file_of(kind)):
        return [kind, *gc.get_referents(each)]
    return []


def _file_of(each: ModuleType | type) -> str:
    module = sys.modules.get(each.__module__) if isinstance(each, type) else each
    return getattr(module, "__file__", None) or "<string>"


def _is(first: Any, second: Any) -> bool:
    return first is second


def _concerns(code: CodeType) -> bool:
    return not _CONVERSIONS.keys().isdisjoint(code.co_names)


@functools.cache
def is_own(file: str) -> bool:
    """Tell whether a file is the program's: neither Python's nor an installed package's."""
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
