"""What would make a step fit: changes that are tried by tracing the changed step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vramkit.estimate._api import Request, with_batch
from vramkit.estimate._estimate import Estimate
from vramkit.estimate._optimizers import optimizer_factory
from vramkit.estimate._recorder import Kind
from vramkit.units import format_mib


@dataclass(frozen=True)
class Proposal:
    """A change that was tried.

    Attributes:
        change: What to do.
        cost: What it costs.
        device_bytes: Used memory of the device with the change.
        saved_bytes: How much less that is.
        fits: Whether the step completes within the budget.
    """

    change: str
    cost: str
    device_bytes: int
    saved_bytes: int
    fits: bool


@dataclass(frozen=True)
class Advice:
    """What was tried for a budget, the best first. Printing it gives a table.

    Attributes:
        budget_bytes: The budget.
        fits_already: Whether the step completes within it as it is.
        proposals: What was tried: what fits before what does not, then by what it saves.
        largest_batch: The largest number of samples that fits; None where it was not sought, or
            where the step raised with each smaller batch that was tried.
        failed: Changes with which the step raised, each with the error.
    """

    budget_bytes: int
    fits_already: bool
    proposals: tuple[Proposal, ...]
    largest_batch: int | None
    failed: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain containers."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the table."""
        budget = format_mib(self.budget_bytes)
        verdict = "fits as it is" if self.fits_already else "does not fit as it is"
        lines = [f"Budget of {budget}: the step {verdict}"]
        width = max((len(each.change) for each in self.proposals), default=0)
        for each in self.proposals:
            mark = "fits" if each.fits else "no"
            lines.append(
                f"  {mark:<4}  {each.change:<{width}}  {format_mib(each.device_bytes):>9}  saves "
                f"{format_mib(each.saved_bytes):>9}; {each.cost}"
            )
        if self.largest_batch is not None:
            lines.append(f"  largest batch that fits: {self.largest_batch:,}")
        lines += [f"  could not be tried: {each}" for each in self.failed]
        return "\n".join(lines)


def advise(estimate: Estimate, budget_bytes: int) -> Advice:
    """Try each change alone, and batch sizes, and rank what they do."""
    request = estimate.request
    fits = estimate.fits(budget_bytes)
    proposals = list(_without_tracing(estimate, budget_bytes))
    failed: dict[str, str] = {}
    for change, cost, changed in _changes(request, estimate):
        tried = _tried(changed, change, failed)
        if tried is not None:
            proposals.append(_proposal(change, cost, estimate, tried, budget_bytes))
    largest = None if fits else _largest_batch(request, budget_bytes, failed)
    proposals = [each for each in proposals if each.saved_bytes > 0]
    proposals.sort(key=lambda each: (not each.fits, -each.saved_bytes))
    reasons = tuple(f"{change} ({reason})" for change, reason in failed.items())
    return Advice(budget_bytes, fits, tuple(proposals), largest, reasons)


def _tried(changed: Request, change: str, failed: dict[str, str]) -> Estimate | None:
    """Trace a changed step; a program may raise anything where it does not take the change."""
    try:
        return changed.run()
    except Exception as err:  # noqa: BLE001 - the program's own code runs
        first = str(err).strip().partition("\n")[0]
        failed[change] = f"{type(err).__name__}: {first}"
        return None


def _without_tracing(estimate: Estimate, budget_bytes: int) -> Iterator[Proposal]:
    ways = (
        ("pool", "run in a vramkit.MemoryPool", "its capacity must be given"),
        ("expandable", "set PYTORCH_ALLOC_CONF=expandable_segments:True", "slower first steps"),
    )
    for name, change, cost in ways:
        if name not in estimate.reserved_bytes:
            continue
        device = estimate.reserved_bytes[name] + estimate.target.outside_bytes
        saved = estimate.device_bytes - device
        yield Proposal(change, cost, device, saved, device <= budget_bytes)


def _proposal(
    change: str, cost: str, before: Estimate, after: Estimate, budget_bytes: int
) -> Proposal:
    saved = before.device_bytes - after.device_bytes
    return Proposal(change, cost, after.device_bytes, saved, after.fits(budget_bytes))


def _changes(request: Request, estimate: Estimate) -> Iterator[tuple[str, str, Request]]:
    batch = _batch_of(request)
    if batch is not None and batch > 1:
        cost = "two steps for one, or gradient accumulation"
        yield f"halve the batch to {batch // 2:,}", cost, with_batch(request, batch // 2)
    recipe = request.recipe
    if recipe is None:
        return
    if recipe.trains and not recipe.checkpoints:
        changed = replace(request, recipe=replace(recipe, checkpoints=True))
        yield "checkpoint each block", "about a third more computation", changed
    if recipe.autocast is None and request.target.capability >= (8, 0):
        changed = replace(request, recipe=replace(recipe, autocast=torch.bfloat16))
        yield "bf16 autocast", "lower precision of products", changed
    if estimate.peak.by_kind.get(Kind.OPTIMIZER_STATE.value) or recipe.optimizer is not None:
        for name, change, cost in (
            ("adamw-fused", "fused AdamW", "none, but another optimizer if it was not AdamW"),
            ("adamw-8bit", "8-bit AdamW (bitsandbytes)", "quantised optimizer state"),
            ("sgd", "SGD without momentum", "another optimizer: it keeps no state"),
        ):
            optimizer = optimizer_factory(name)
            yield change, cost, replace(request, recipe=replace(recipe, optimizer=optimizer))
    images = isinstance(recipe.sample, torch.Tensor) and recipe.sample.dim() == 4
    if images and not recipe.channels_last:
        changed = replace(request, recipe=replace(recipe, channels_last=True))
        yield "channels_last", "none on tensor cores", changed


def _batch_of(request: Request) -> int | None:
    if request.recipe is not None:
        return request.recipe.sample_batch
    assert request.make_step is not None
    parameter = inspect.signature(request.make_step).parameters.get("batch_size")
    default = parameter.default if parameter is not None else None
    return default if isinstance(default, int) else None


def _largest_batch(request: Request, budget_bytes: int, failed: dict[str, str]) -> int | None:
    """Bisect below the present batch; 0 where not even one sample fits.

    A batch with which the step raises is taken as too small, as for batch norm; if it raises with
    each, no answer is known.
    """
    batch = _batch_of(request)
    if batch is None:
        return None
    best, ran = 0, batch == 1
    works, fails = 0, batch
    while fails - works > 1:
        middle = (works + fails) // 2
        found = _tried(with_batch(request, middle), f"a batch of {middle:,}", failed)
        if found is not None and not found.fits(budget_bytes):
            fails, ran = middle, True
            continue
        works = middle
        if found is not None:
            best, ran = middle, True
    return best if ran else None
