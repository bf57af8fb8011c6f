"""Who consumes a module's output: graphs of a model, or of those parts of it that trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
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


def regions_of(model: nn.Module, prefix: str = "") -> Iterator[Region]:
    """Yield the largest parts of a model that trace.

    A ``Sequential`` that does not trace still tells the order of its modules.
    """
    if isinstance(model, _LEAVES) or not any(True for _ in model.children()):
        return
    graphs = _trace(model)
    if graphs is not None:
        yield Region(prefix, graphs)
        return
    if type(model) is nn.Sequential:
        yield Region(prefix, (_chain(model),))
    for name, child in model.named_children():
        yield from regions_of(child, f"{prefix}{name}.")


def _trace(model: nn.Module) -> tuple[fx.Graph, ...] | None:
    """Return the model's graphs in training and in evaluation; None if it does not trace."""
    graphs = []
    for training in (True, False):
        with _unchanged(model):
            for module in model.modules():
                module.training = training
            try:
                graphs.append(_Tracer().trace(model))
            except Exception:  # noqa: BLE001 - the model's own code runs on proxies
                return None
    return tuple(graphs)


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
