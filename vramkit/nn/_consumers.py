"""Which operations keep nothing of their input for their gradient."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

# Pools keep their input, except the mean over all of it.
_FREE_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    [
        *(operator.add, operator.iadd, operator.sub, torch.add, torch.sub, torch.mean, torch.sum),
        *(torch.cat, torch.concat, F.interpolate, F.pixel_shuffle),
    ]
)
_FREE_METHODS = frozenset(("add", "add_", "sub", "mean", "sum"))
_FREE_MODULES = (
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.PixelShuffle),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
)
_GLOBAL_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
# Their output may be their input's memory, so that their own consumers count.
_ALIAS_FUNCTIONS = frozenset((torch.flatten, F.dropout))
_ALIAS_METHODS = frozenset(("flatten", "view", "reshape", "contiguous", "permute"))
_ALIAS_MODULES = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def keeps_nothing(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether no consumer of a node's output keeps it for a gradient.

    What the graph does not know, such as the consumers of the model's output, counts as keeping.
    """
    return bool(node.users) and all(_frees(user, modules) for user in node.users)


def _frees(user: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if user.op == "call_module":
        module = modules[str(user.target)]
        if type(module) in _ALIAS_MODULES:
            return keeps_nothing(user, modules)
        return type(module) in _FREE_MODULES or _is_mean(module)
    free, alias = {
        "call_function": (_FREE_FUNCTIONS, _ALIAS_FUNCTIONS),
        "call_method": (_FREE_METHODS, _ALIAS_METHODS),
    }.get(user.op, (frozenset(), frozenset()))
    if user.target in alias:
        return keeps_nothing(user, modules)
    return user.target in free


def _is_mean(module: nn.Module) -> bool:
    if not isinstance(module, _GLOBAL_POOLS):
        return False
    size = module.output_size
    return all(n == 1 for n in (size if isinstance(size, tuple) else (size,)))
