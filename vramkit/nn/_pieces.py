"""Which parts of a model its own code uses other than by a call of the whole part.

What does not trace cannot be followed, but its source tells ``self.features(x)`` from
``for layer in self.features``, which may use what comes before a ReLU.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)


def taken_apart(model: nn.Module) -> frozenset[str]:
    """Return the names of attributes that ``forward``, or what it calls, reads without a call.

    Code without a source tells none.
    """
    names: set[str] = set()
    done: set[Any] = set()
    waiting: list[Any] = [model.forward]
    while waiting:
        function = waiting.pop()
        function = inspect.unwrap(getattr(function, "func", function))  # of a partial
        code = getattr(function, "__code__", None)
        if code is None or code in done or code.co_filename.startswith(_TORCH):
            continue
        done.add(code)
        nodes = list(ast.walk(_parsed(function)))
        harmless = {id(node) for each in nodes for node in _called_or_tested(each)}
        reads = [node for node in nodes if isinstance(node, ast.Attribute)]
        names.update(node.attr for node in reads if id(node) not in harmless)
        waiting += (m for node in reads for m in _functions(type(model), node.attr))
    return frozenset(names)


def _parsed(function: Any) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


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


def _functions(kind: type[nn.Module], name: str) -> Iterator[Any]:
    """Yield the function of a class, or of a property of it, that has a name."""
    member = inspect.getattr_static(kind, name, None)
    member = getattr(member, "fget", getattr(member, "__func__", member))
    if inspect.isfunction(member):
        yield member
