"""Undoing what a model's code changes while it is traced."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_Container = dict[Any, Any] | list[Any] | set[Any]
# The elements or keys, and a dict's values.
_Content = tuple[list[Any], list[Any]]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what the model's code changes: attributes, buffers, and the state of random numbers.

    Containers stay the same objects. The handle of a hook, which only knows the container that it
    is in, can thus still remove it; so do lazy modules when they get their sizes.
    """
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    contents = [(each, _content(each)) for _, state in before for each in _containers(state)]
    with torch.no_grad():
        buffers = [(buffer, buffer._version, buffer.clone()) for buffer in _written(model)]
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices), _other_random_numbers():
            yield
    finally:
        for module, state in before:
            module.__dict__.clear()
            module.__dict__.update(state)
        for container, content in contents:
            _put_back(container, content)
        _restore(buffers)


@contextmanager
def _other_random_numbers() -> Iterator[None]:
    """Restore the states of Python's and NumPy's global generators."""
    numpy = sys.modules.get("numpy")
    python, others = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(others)


def _containers(state: dict[str, Any]) -> Iterator[_Container]:
    yield from (value for value in state.values() if isinstance(value, dict | list | set))


def _content(container: _Container) -> _Content:
    return list(container), list(container.values()) if isinstance(container, dict) else []


def _put_back(container: _Container, content: _Content) -> None:
    """Restore a container, but call no method that writes to one that is as it was."""
    keys, values = content
    now = _content(container)
    if [*map(id, keys), *map(id, values)] == [*map(id, now[0]), *map(id, now[1])]:
        return
    container.clear()
    if isinstance(container, dict):
        container.update(zip(keys, values, strict=True))
    elif isinstance(container, list):
        container.extend(keys)
    else:
        container.update(keys)


def _written(model: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers that the model's own code may write to; PyTorch's modules do not run."""
    for module in model.modules():
        if not type(module).__module__.startswith("torch.nn"):
            yield from (
                buffer
                for buffer in module.buffers(recurse=False)
                if not (is_lazy(buffer) or buffer.is_inference())
            )


def _restore(buffers: list[tuple[Tensor, int, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, version, value in buffers:
            if buffer._version != version:
                buffer.copy_(value)
