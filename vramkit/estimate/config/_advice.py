"""What would make a model fit: changes of the options, each estimated again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vramkit.errors import InvalidArgumentError
from vramkit.estimate._target import Target
from vramkit.estimate.config._reading import Model, read_model
from vramkit.estimate.config._results import RankEstimate, usable_bytes
from vramkit.estimate.config._serving import Serving, estimate_serving
from vramkit.estimate.config._training import estimate_training
from vramkit.estimate.config._training_options import Training

_LORA_RANK = 16
_SMALL_CHUNK = 2048
Options = Serving | Training


@dataclass(frozen=True)
class Change:
    """A change that saves memory.

    Attributes:
        change: The option and its new value.
        saved_bytes: What it saves on the rank that needs most.
        total_bytes: What that rank needs then.
        fits: Whether this is within the budget.
        cost: What the change costs.
    """

    change: str
    saved_bytes: int
    total_bytes: int
    fits: bool
    cost: str


def estimate_of(model: Model, options: Options, target: str | Target) -> RankEstimate:
    """Estimate serving or training, by the kind of the options."""
    if isinstance(options, Serving):
        return estimate_serving(model, options, target=target)
    return estimate_training(model, options, target=target)


def advise(
    model: Model,
    options: Options,
    *,
    target: str | Target = "h100",
    budget: str | int | Target | None = None,
) -> tuple[Change, ...]:
    """Try single changes of the options, and rank what saves memory.

    Args:
        model: What :func:`~vramkit.estimate.config.read_model` takes or gives.
        options: How it is served or trained.
        target: The GPU.
        budget: A size, which counts whole, or a GPU, of which the part counts that serving may use;
            the target by default.

    Returns:
        The changes that fit first, each group by what it saves; without those that save nothing.

    Raises:
        ArgumentTypeError: ``model`` or ``options`` is something else.
        InvalidArgumentError: The options themselves do not work.

    >>> from vramkit.estimate.config import Training, read_model
    >>> first = advise(read_model("llama-3.1-8b"), Training(), target="h100")[0]
    >>> first.change, first.fits
    ('QLoRA of rank 16', True)
    """
    model = read_model(model)
    found_before = estimate_of(model, options, target)
    before = found_before.total_bytes
    room = found_before.target if budget is None else budget
    limit = usable_bytes(room, found_before.utilisation)
    found = []
    for change, changes, cost in _candidates(options):
        try:
            total = estimate_of(model, replace(options, **changes), target).total_bytes
        except InvalidArgumentError:
            continue
        if total < before:
            found.append(Change(change, before - total, total, total <= limit, cost))
    return tuple(sorted(found, key=lambda each: (not each.fits, -each.saved_bytes)))


def _candidates(options: Options) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield each change in words, the options that it changes, and its cost."""
    yield from _layouts(options)
    if isinstance(options, Serving):
        yield from _of_serving(options)
    else:
        yield from _of_training(options)


def _layouts(options: Options) -> Iterator[tuple[str, dict[str, Any], str]]:
    parallel = options.parallel
    for degree, cost in (
        ("tensor", "twice the GPUs, and communication in every layer"),
        ("pipeline", "twice the GPUs, and bubbles between the stages"),
    ):
        value = 2 * getattr(parallel, degree)
        changed = replace(parallel, **{degree: value}, stages=None)
        yield f"{degree} parallel {value}", {"parallel": changed}, cost


def _of_serving(options: Serving) -> Iterator[tuple[str, dict[str, Any], str]]:
    yield "cache in fp8", {"cache": "fp8"}, "slightly less exact attention"
    yield "weights in fp8", {"weights": "fp8"}, "quantisation; fast on Hopper and later"
    yield "weights in 4 bits (AWQ)", {"weights": "awq"}, "quantisation to 4 bits"
    if options.batch > 1:
        half = options.batch // 2
        yield f"batch {half:,}", {"batch": half}, "half the sequences at once"
    if options.context > 1:
        half = options.context // 2
        yield f"context {half:,}", {"context": half}, "half the context"
    if options.chunk_tokens > _SMALL_CHUNK:
        chunk = {"chunk_tokens": _SMALL_CHUNK}
        yield f"passes of {_SMALL_CHUNK:,} tokens", chunk, "slower reading of prompts"
    yield "no CUDA graphs", {"cuda_graphs": False}, "slower answers at small batches"
    yield "windows freed", {"windows": True}, "none, if the engine can"


def _of_training(options: Training) -> Iterator[tuple[str, dict[str, Any], str]]:
    yield "full recomputation", {"recompute": "full"}, "about a third more compute"
    yield "FlashAttention", {"flash": True}, "none"
    yield "fused norms and activations", {"fused": True}, "a library such as Liger's kernels"
    if options.microbatches == 1:
        changes: dict[str, Any] = {"keep_gradients": False}
        yield "gradients freed between steps", changes, "none, if the framework can"
    yield "fused loss", {"loss": "fused"}, "a library such as Liger's kernels"
    yield "8-bit AdamW", {"optimizer": "adamw-8bit"}, "slightly less exact moments"
    yield "pure bf16", {"policy": "bf16"}, "small updates are lost in rounding"
    if options.micro_batch > 1:
        half = options.micro_batch // 2
        changes = {"micro_batch": half, "microbatches": 2 * options.microbatches}
        yield f"micro-batch {half:,}, twice as many", changes, "smaller matrices, slower"
    if options.sequence > 1:
        half = options.sequence // 2
        yield f"sequences of {half:,}", {"sequence": half}, "half the context"
    for zero in range(options.zero + 1, 4):
        costs = {1: "none to speak of", 2: "none to speak of", 3: "half again the communication"}
        yield f"ZeRO {zero}", {"zero": zero}, costs[zero]
    if options.parallel.data == 1 and options.zero < 3:
        wide = replace(options.parallel, data=8)
        yield "ZeRO 3 over 8 replicas", {"zero": 3, "parallel": wide}, "eight times the GPUs"
    if options.zero:
        more = 2 * options.parallel.data
        wide = replace(options.parallel, data=more)
        yield f"{more} replicas", {"parallel": wide}, "twice the GPUs"
    if not options.lora_rank:
        name = f"LoRA of rank {_LORA_RANK}"
        yield name, {"lora_rank": _LORA_RANK}, "trains adapters only"
        quantised: dict[str, Any] = {"lora_rank": _LORA_RANK, "frozen": "nf4"}
        yield f"Q{name}", quantised, "trains adapters only, over weights in 4 bits"
