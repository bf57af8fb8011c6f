"""Who consumes a module's output: graphs of a model, or of those parts of it that trace."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Code of torch and of this package.
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_LEAVES = (*CONVOLUTIONS, *BATCH_NORMS, nn.ReLU)


@dataclass(frozen=True)
class Region:
    """A part of a model whose data flow is known.

    Attributes:
        prefix: The part's name with a dot at its end; empty for the whole model.
        graphs: Its graph in training and in evaluation, or the only one that there can be.
    """

    prefix: str
    graphs: tuple[fx.Graph, ...]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


def regions_of(model: nn.Module, prefix: str = "", *, failures: dict[str, str]) -> Iterator[Region]:
    """Yield the largest parts of a model that trace.

    A ``Sequential`` that does not trace still tells the order of its modules.

    Args:
        model: The model, or the part of it.
        prefix: The part's name with a dot at its end; empty for the whole model.
        failures: Gets, by their prefixes, why parts do not trace.
    """
    if isinstance(model, _LEAVES) or not any(True for _ in model.children()):
        return
    graphs = _trace(model)
    if not isinstance(graphs, Exception):
        yield Region(prefix, graphs)
        return
    if not isinstance(model, nn.ModuleList | nn.ModuleDict):  # these have no code
        failures[prefix] = _in_words(model, prefix, graphs)
    if type(model) is nn.Sequential:
        yield Region(prefix, (_chain(model),))
    for name, child in model.named_children():
        yield from regions_of(child, f"{prefix}{name}.", failures=failures)


def _trace(model: nn.Module) -> tuple[fx.Graph, ...] | Exception:
    """Return the model's graphs in training and in evaluation, or why it does not trace."""
    graphs = []
    for training in (True, False):
        with _unchanged(model):
            for module in model.modules():
                module.training = training
            try:
                graphs.append(_Tracer().trace(model))
            except Exception as err:  # noqa: BLE001 - the model's own code runs on proxies
                return err
    return tuple(graphs)


def _in_words(model: nn.Module, prefix: str, err: Exception) -> str:
    """Say which module does not trace, in which line of its code, and why."""
    lines = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(err.__traceback__)
        if not frame.filename.startswith((*_NOT_THE_USERS, "<"))
    ]
    name = f"{prefix.rstrip('.')} ({type(model).__name__})" if prefix else type(model).__name__
    where = f" at {lines[-1]}" if lines else ""
    text = (str(err).strip().splitlines() or [""])[0]
    return (
        f"the code of {name} does not trace{where} ({type(err).__name__}: {text}); change that "
        "line, or use ConvReLU modules there"
    )


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what the model's code sets on its modules, such as proxies that it remembers."""
    before = [(module, _copied(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, state in before:
            module.__dict__.clear()
            module.__dict__.update(state)


def _copied(module: nn.Module) -> dict[str, Any]:
    return {
        name: value.copy() if isinstance(value, dict | list | set) else value
        for name, value in module.__dict__.items()
    }


def _chain(model: nn.Sequential) -> fx.Graph:
    graph = fx.Graph()
    value = graph.placeholder("input")
    for name, _ in model.named_children():
        value = graph.call_module(name, (value,))
    graph.output(value)
    return graph
