"""Who consumes a module's output: graphs of a model, or of those parts of it that trace."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

from vramkit.nn._pieces import taken_apart
from vramkit.nn._tracer import (
    LEAVES,
    Tracer,
    UninitializedError,
    cannot_happen,
    ways_to_call,
)
from vramkit.nn._unchanged import unchanged

# Code of torch and of this package.
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
# torch.fx patches nn.Module while it traces, and what two threads patch stays behind.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Region:
    """A part of a model whose data flow is known.

    Attributes:
        prefix: The part's name with a dot at its end; empty for the whole model.
        graphs: Its graphs: in training and in evaluation, with and without optional arguments.
        elsewhere: The names of modules that are not called by the attributes that hold them.
        has_code: Whether the graphs were traced; a ``Sequential`` that does not trace has an order.
    """

    prefix: str
    graphs: tuple[fx.Graph, ...]
    elsewhere: frozenset[str] = frozenset()
    has_code: bool = True

    def stays(self, model: nn.Module, replaced: Mapping[str, nn.Module]) -> bool:
        """Tell whether the code of the part runs as before where other modules take these places.

        Args:
            model: The model.
            replaced: Other modules, by the names in the part of those whose places they take.
        """
        if not self.has_code:
            return True
        traced = _trace(model.get_submodule(self.prefix.rstrip(".")), replaced)
        return not isinstance(traced, Exception) and [*map(str, traced[0])] == [
            *map(str, self.graphs)
        ]


def regions_of(
    model: nn.Module,
    prefix: str = "",
    *,
    failures: dict[str, str],
    around: frozenset[str] = frozenset(),
) -> Iterator[Region]:
    """Yield the largest parts of a model that trace.

    A ``Sequential`` that does not trace still tells the order of its modules.

    Args:
        model: The model, or the part of it.
        prefix: The part's name with a dot at its end; empty for the whole model.
        failures: Gets, by their prefixes, why parts do not trace.
        around: The names of parts that the code around this one, which does not trace, takes apart.
    """
    if isinstance(model, LEAVES) or not any(True for _ in model.children()):
        return
    apart = prefix[:-1].rpartition(".")[-1] in around
    traced = None if apart else _trace(model, {})
    if isinstance(traced, tuple):
        yield Region(prefix, *traced)
        return
    if not isinstance(model, nn.ModuleList | nn.ModuleDict):  # these have no code
        failures[prefix] = _in_words(model, prefix, traced)
    if type(model) is nn.Sequential and "forward" not in model.__dict__ and not apart:
        yield Region(prefix, (_chain(model),), has_code=False)
    around |= taken_apart(model)
    for name, child in model.named_children():
        yield from regions_of(child, f"{prefix}{name}.", failures=failures, around=around)


def _trace(
    model: nn.Module, replaced: Mapping[str, nn.Module]
) -> tuple[tuple[fx.Graph, ...], frozenset[str]] | Exception:
    """Return the model's graphs, and what they call elsewhere; or why it does not trace."""
    graphs: list[fx.Graph] = []
    elsewhere: set[str] = set()
    try:
        ways = [(training, given) for training in (True, False) for given in ways_to_call(model)]
    except fx.proxy.TraceError as err:
        return err
    for training, given in ways:
        with _ONE_AT_A_TIME, unchanged(model), torch.enable_grad():
            for module in (*model.modules(), *replaced.values()):
                module.training = training
            tracer = Tracer(model, given, replaced)
            try:
                graphs.append(tracer.trace(model))
                tracer.mark_kept()
            except Exception as err:  # noqa: BLE001 - the model's own code runs on proxies
                if not (graphs and cannot_happen(err)):
                    return err
            elsewhere |= tracer.elsewhere
    return tuple(graphs), frozenset(elsewhere)


def _in_words(model: nn.Module, prefix: str, err: Exception | None) -> str:
    """Say which module does not trace, in which line of its code, and why; or is taken apart."""
    if err is None:
        return (
            f"the code around {prefix[:-1]} does not trace, and may use it in parts, as it does "
            "not only call it"
        )
    name = f"{prefix.rstrip('.')} ({type(model).__name__})" if prefix else type(model).__name__
    if isinstance(err, UninitializedError):
        return f"{name} is not traced, because {err}"
    lines = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(err.__traceback__)
        if not frame.filename.startswith((*_NOT_THE_USERS, "<"))
    ]
    where, advice = (f" at {lines[-1]}", "change that line, or use") if lines else ("", "use")
    text = (str(err).strip().splitlines() or [""])[0]
    return (
        f"the code of {name} does not trace{where} ({type(err).__name__}: {text}); {advice} "
        "ConvReLU modules there"
    )


def _chain(model: nn.Sequential) -> fx.Graph:
    graph = fx.Graph()
    value = graph.placeholder("input")
    for name, _ in model.named_children():
        value = graph.call_module(name, (value,))
    graph.output(value)
    return graph
