"""Walks through batches of any structure as ``pin_memory`` does, and keeps their types."""

import collections.abc
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

Visit = Callable[[Any], Any]


def map_leaves(data: Any, visit: Visit) -> Any:
    """Return the structure with ``visit`` applied to each leaf.

    Containers are mappings, sequences, named tuples and dataclasses; strings and bytes are leaves.
    Types are kept as PyTorch's ``pin_memory`` keeps them.
    """
    if isinstance(data, (torch.Tensor, str, bytes)):
        return visit(data)
    if isinstance(data, collections.abc.Mapping):
        return _map_mapping(data, visit)
    if isinstance(data, tuple):
        parts = [map_leaves(each, visit) for each in data]
        return type(data)(*parts) if hasattr(data, "_fields") else type(data)(parts)
    if isinstance(data, collections.abc.Sequence):
        return _map_sequence(data, visit)
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return _map_dataclass(data, visit)
    return visit(data)


def _map_mapping(data: Any, visit: Visit) -> Any:
    parts = {key: map_leaves(value, visit) for key, value in data.items()}
    if type(data) is dict:
        return parts
    try:
        if isinstance(data, collections.abc.MutableMapping):
            # A mapping type may have attributes of its own, which a copy keeps.
            clone = copy.copy(data)
            clone.update(parts)
            return clone
        return type(data)(parts)
    except TypeError:
        return parts


def _map_sequence(data: Any, visit: Visit) -> Any:
    parts = [map_leaves(each, visit) for each in data]
    if type(data) is list:
        return parts
    try:
        if isinstance(data, collections.abc.MutableSequence):
            clone = copy.copy(data)
            for position, part in enumerate(parts):
                clone[position] = part
            return clone
        return type(data)(parts)
    except TypeError:
        return parts


def _map_dataclass(data: Any, visit: Visit) -> Any:
    changed = {}
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        mapped = map_leaves(value, visit)
        if mapped is not value:
            changed[field.name] = mapped
    if not changed:
        return data
    clone = copy.copy(data)
    for name, value in changed.items():
        object.__setattr__(clone, name, value)
    return clone
