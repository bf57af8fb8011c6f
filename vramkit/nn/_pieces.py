"""Which parts of a model its own code uses other than by a call of the whole part.

What does not trace cannot be followed, but its source tells ``self.features(x)`` from
``for layer in self.features``, which may use what comes before a ReLU.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class _Uses:
    """The names of attributes in a function's source.

    Attributes:
        called: Those that are called, as in ``self.features(x)``.
        taken_apart: Those that are used in yet another way than in a call or a test.
        all: All of them.
    """

    called: frozenset[str]
    taken_apart: frozenset[str]
    all: frozenset[str]


def taken_apart(model: nn.Module) -> frozenset[str]:
    """Return the names of attributes that ``forward``, or what it calls, reads without a call.

    Code without a source tells none.
    """
    return frozenset().union(*(_uses(code).taken_apart for code in _run_by_forward(model)))


def called_elsewhere(model: nn.Module, name: str, follower: str) -> str | None:
    """Return a method that calls an attribute of a model, but does not name another attribute.

    What ``forward`` calls is left out.
    """
    known = _run_by_forward(model)
    for method in dir(type(model)):
        for code in itertools.islice(_codes(type(model), method), 1):
            uses = _uses(code)
            if code not in known and name in uses.called and follower not in uses.all:
                return method
    return None


def _run_by_forward(model: nn.Module) -> set[CodeType]:
    """Return the code, other than torch's, that ``forward`` may run."""
    found: set[CodeType] = set()
    waiting = [*_code_of(model.forward)]
    while waiting:
        code = waiting.pop()
        if code not in found:
            found.add(code)
            waiting += (each for name in _uses(code).all for each in _codes(type(model), name))
    return found


@functools.lru_cache(maxsize=1024)
def _uses(code: CodeType) -> _Uses:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        tree = ast.Module([], [])
    nodes = list(ast.walk(tree))
    harmless = {id(node) for each in nodes for node in _called_or_tested(each)}
    called = (node.func for node in nodes if isinstance(node, ast.Call))
    reads = [node for node in nodes if isinstance(node, ast.Attribute)]
    return _Uses(
        frozenset(node.attr for node in called if isinstance(node, ast.Attribute)),
        frozenset(node.attr for node in reads if id(node) not in harmless),
        frozenset(node.attr for node in reads),
    )


def _called_or_tested(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node calls, itself or by a checkpoint, or only compares with a constant."""
    if isinstance(node, ast.Call):
        yield node.func
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        yield from node.args[:1] if "checkpoint" in called else ()
    elif isinstance(node, ast.Compare) and isinstance(node.comparators[0], ast.Constant):
        yield node.left
    elif isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
        yield node.test
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.UnaryOp):
        yield node.operand


def _codes(kind: type[nn.Module], name: str) -> Iterator[CodeType]:
    """Yield the code of the methods or properties that have a name in a class and its bases."""
    for each in kind.__mro__:
        member = vars(each).get(name)
        yield from _code_of(getattr(member, "fget", getattr(member, "__func__", member)))


def _code_of(function: Any) -> Iterator[CodeType]:
    """Yield the code of a function, a method or a partial, if it has some and is not torch's."""
    function = getattr(function, "func", function)
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    if isinstance(code, CodeType) and not code.co_filename.startswith(_TORCH):
        yield code
