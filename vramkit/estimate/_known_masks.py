"""Indexing by masks: as by the places that these choose.

PyTorch looks for the places, too, before it reads or writes them. A mask that depends on data
chooses all places where guesses are allowed; elsewhere it is refused, as the size of what it
chooses is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from vramkit.estimate._ops._embedding import index_put_plan
from vramkit.estimate._ops._plan import Drop, Give, Plan, Step, Take, size_of
from vramkit.estimate._ops._scan import nonzero
from vramkit.estimate._shadow import Shadows
from vramkit.estimate._target import Target

_aten = torch.ops.aten
_OF_MASKS = (torch.bool, torch.uint8)


class Runner(Protocol):
    """Runs an operator on fakes; ``_rewrites.py`` says how."""

    shadows: Shadows
    target: Target
    may_guess: bool

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run it, without the births of its results."""

    def follow(self, plan: Plan, outputs: tuple[Any, ...]) -> None:
        """Record what a plan says."""


def index(runner: Runner, args: tuple[Any, ...]) -> Any:
    """Run ``index``, or return NotImplemented where it has no masks, or one that is not known."""
    found = _places(runner, args[1])
    if found is None:
        return NotImplemented
    indices, plan = found
    out = runner.run(_aten.index.Tensor, (args[0], indices), {})
    runner.follow([*plan, Give(0), Drop(_left(plan))], (out,))
    return out


def masked_select(runner: Runner, _: Any, args: tuple[Any, ...], __: dict[str, Any]) -> Any:
    """Run ``masked_select``, or return NotImplemented where the mask is not known."""
    shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
    tensor, mask = (runner.run(_aten.expand.default, (each, shape), {}) for each in args)
    return index(runner, (tensor, [mask]))


def index_put(runner: Runner, args: tuple[Any, ...], *, unsafe: bool = False) -> Any:
    """Run ``index_put_``, or return NotImplemented as ``index`` does, and where it fills."""
    tensor, indices, values, *rest = args
    accumulates = bool(rest and rest[0])
    fills = values.numel() == 1 and not accumulates
    found = None if fills else _places(runner, indices)
    if found is None:
        return NotImplemented
    indices, plan = found
    runner.run(_aten.index_put_.default, (tensor, indices, values, accumulates), {})
    if accumulates:
        put = tensor, indices, values
        inside = index_put_plan(runner.target, put, unsafe=unsafe, kept=_left(plan))
        runner.follow([*plan, *inside], (tensor,))
    else:
        runner.follow([*plan, Drop(_left(plan))], (tensor,))
    return tensor


def _places(
    runner: Runner, indices: Sequence[torch.Tensor | None]
) -> tuple[list[torch.Tensor | None], Plan] | None:
    """Return the indices without masks, and what finding their places takes and keeps."""
    masks = [each for each in indices if each is not None and each.dtype in _OF_MASKS]
    known = runner.may_guess or all(runner.shadows.of(mask) is not None for mask in masks)
    if not masks or not known:
        return None
    found: list[torch.Tensor | None] = []
    plan: list[Step] = []
    for each in indices:
        if each is None or each.dtype not in _OF_MASKS:
            found.append(each)
            continue
        places = runner.run(_aten.nonzero.default, (each,), {})
        found += runner.run(_aten.unbind.int, (places, 1), {})
        if each.device.type == "cuda":
            plan += nonzero(each.numel(), runner.target, Take(size_of(places)))
    return found, plan


def _left(plan: Plan) -> int:
    taken = sum(isinstance(step, Take) for step in plan)
    return taken - sum(step.count for step in plan if isinstance(step, Drop))
