"""The entrance: traces a step and makes an estimate of it.

The method is described in ``docs/design/estimate.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

import torch

from vramkit import simulate
from vramkit.errors import ArgumentTypeError, EmptyStepError
from vramkit.estimate._allocators import (
    ExpandableAllocator,
    NativeAllocator,
    Settings,
    parse_settings,
)
from vramkit.estimate._allocators import replay as replay_allocator
from vramkit.estimate._communicators import communicator_bytes
from vramkit.estimate._estimate import Estimate
from vramkit.estimate._optimizers import Factory, optimizer_factory
from vramkit.estimate._options import check_names, signature_of
from vramkit.estimate._peak import find_peak
from vramkit.estimate._ranks import is_all_to_all
from vramkit.estimate._recipe import Recipe
from vramkit.estimate._recorder import Trace
from vramkit.estimate._samples import checked_sample
from vramkit.estimate._target import Target
from vramkit.estimate._targets import find_target
from vramkit.estimate._trace import Guess, Progress, trace
from vramkit.units import format_mib

MakeStep = Callable[..., Callable[[], Any]]
_PAGE_BYTES = 2 << 20
# The pool's core simulates a machine of twice as much; a peak of this size needs more than it has
# only where placement wastes half of it.
_MOST_REPLAYED_BYTES = 1 << 43
# Operators by the library that they use, of libraries that most steps do not.
_LIBRARIES: dict[str, tuple[str, ...]] = {
    "cuSOLVER": ("aten::linalg_eigh", "aten::_linalg", "aten::linalg_c", "aten::cholesky"),
    "cuFFT": ("aten::_fft",),
    "cuSPARSE": ("aten::_sparse", "aten::_to_sparse"),
}


@dataclass(frozen=True)
class Request:
    """What is estimated.

    Attributes:
        make_step: Builds the step; None where a model was given.
        recipe: Builds the step of a model; None where ``make_step`` was given.
        target: The GPU.
        steps: How many steps are traced.
        guess: Whether results that depend on data may be guessed.
        settings: The settings of PyTorch's allocator.
        progress: Called after each step.
        world_size: How many ranks there are; None without ``torch.distributed``.
    """

    make_step: MakeStep | None
    recipe: Recipe | None
    target: Target
    steps: int
    guess: Guess
    settings: Settings
    progress: Progress | None = None
    world_size: int | None = None

    def run(self) -> Estimate:
        """Trace and evaluate.

        Raises:
            EmptyStepError: The step allocates nothing.
        """
        make_step = self.make_step or (self.recipe.make_step if self.recipe else None)
        assert make_step is not None
        # A model is trained also where gradients are switched off around the call.
        trains = self.recipe is not None and self.recipe.trains
        with torch.inference_mode(mode=torch.is_inference_mode_enabled() and not trains):
            traced = trace(
                make_step,
                target=self.target,
                steps=self.steps,
                guess=self.guess,
                progress=self.progress,
                world_size=self.world_size,
            )
        found = evaluate(traced, self)
        if found.peak_requested_bytes == 0:
            raise EmptyStepError(
                "the step allocates nothing on 'cuda', so there is nothing to estimate; it must "
                "use the device 'cuda' itself (torch.cuda.is_available() is False until it runs)"
            )
        return found


class ModelOptions(TypedDict, total=False):
    """What a step of a model does, for :func:`estimate`.

    Attributes:
        optimizer: A name (``"adam"``, ``"adamw"``, ``"adamw-fused"``, ``"adamw-8bit"``, ``"sgd"``,
            ``"sgd-momentum"``), an optimizer, or a function of the parameters. None: no update.
        loss: A function of the output; None takes the output's ``loss``, or its sum.
        autocast: The dtype of autocast around model and loss; None for no autocast.
        train: Whether there is a backward pass; by default where an optimizer or a loss is given.
    """

    optimizer: str | Factory | torch.optim.Optimizer | None
    loss: Callable[[Any], torch.Tensor] | None
    autocast: torch.dtype | None
    train: bool | None


def estimate(
    model: torch.nn.Module | Callable[[], torch.nn.Module] | None = None,
    sample_input: Any = None,
    *,
    step: MakeStep | None = None,
    target: str | Target = "h100",
    steps: int = 3,
    guess: Guess = "refuse",
    alloc_conf: str = "",
    progress: Progress | None = None,
    world_size: int | None = None,
    **options: Unpack[ModelOptions],
) -> Estimate:
    """Estimate the GPU memory of a training or inference step; nothing runs on a device.

    Args:
        model: A module on any device, with or without data, or a function that returns one.
        sample_input: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
        step: In place of both: a function that builds model, optimizer and data on ``"cuda"`` and
            returns a function that runs one step.
        target: Name of the GPU, or a :class:`Target`.
        steps: How many steps are traced; some peaks need the third.
        guess: ``"refuse"``, or ``"allow"`` to count and name results that depend on data.
        alloc_conf: What PYTORCH_ALLOC_CONF will hold.
        progress: Called after each step with the steps done and their total.
        world_size: How many ranks ``torch.distributed`` has in the step, of which rank 0 is
            estimated; None for a step without it.
        options: ``optimizer``, ``loss``, ``autocast`` and ``train``, see :class:`ModelOptions`.

    Raises:
        ArgumentTypeError, InvalidArgumentError: An argument cannot be used, or the step is empty.
        NativeLibraryError: The pretended device cannot be built or loaded.
        ScopeError: Another estimate is running in this process, or, with ``world_size``, it is part
            of a process group.
        UntraceableError: An operator's memory cannot be known.

    >>> found = estimate(torch.nn.Linear(512, 2048), torch.empty(64, 512), optimizer="adamw")
    >>> found.parameters, found.fits("24GiB"), found.peak.by_kind["optimizer state"]
    (1050624, True, 8404992)
    """
    check_names(options, SIGNATURE)
    recipe = _recipe(model, sample_input, options) if step is None else None
    if step is not None:
        _check_step(step, (model, sample_input, *options.values()))
    _check_tracing(steps, alloc_conf, progress)
    gpu, settings = find_target(target), parse_settings(alloc_conf)
    return Request(step, recipe, gpu, steps, guess, settings, progress, world_size).run()


SIGNATURE = signature_of(estimate, ModelOptions)


def _check_tracing(steps: object, alloc_conf: object, progress: object) -> None:
    if type(steps) is not int:
        raise _wrong("steps", steps, "an integer")
    if not isinstance(alloc_conf, str):
        raise _wrong("alloc_conf", alloc_conf, "a text such as 'expandable_segments:True'")
    if progress is not None and not callable(progress):
        raise _wrong("progress", progress, "a function of the steps done and their total")


def _recipe(model: Any, sample: Any, options: ModelOptions) -> Recipe:
    optimizer, loss = options.get("optimizer"), options.get("loss")
    train, autocast = options.get("train"), options.get("autocast")
    if loss is not None and not callable(loss):
        raise _wrong("loss", loss, "a function of the output")
    if train is not None and not isinstance(train, bool):
        raise _wrong("train", train, "True, False or None")
    if autocast is not None and not isinstance(autocast, torch.dtype):
        raise _wrong("autocast", autocast, "a dtype such as torch.bfloat16")
    return Recipe(
        model=_checked_model(model),
        sample=checked_sample(sample),
        optimizer=optimizer_factory(optimizer, model) if optimizer is not None else None,
        loss=loss,
        trains=(optimizer is not None or loss is not None) if train is None else train,
        autocast=autocast,
    )


def with_batch(request: Request, batch: int) -> Request:
    """Return the request with another number of samples."""
    if request.recipe is not None:
        return replace(request, recipe=replace(request.recipe, batch=batch))
    assert request.make_step is not None
    return replace(request, make_step=functools.partial(request.make_step, batch_size=batch))


def evaluate(traced: Trace, request: Request) -> Estimate:
    """Replay a trace through the allocators and make the estimate of it."""
    events, settings = traced.events(), request.settings
    native = replay_allocator(events, NativeAllocator(settings))
    expandable = replay_allocator(events, ExpandableAllocator(settings))
    reserved = {
        "native": native.reserved_bytes,
        "expandable": expandable.reserved_bytes,
    }
    if events.peak_live_bytes <= _MOST_REPLAYED_BYTES:
        reserved["pool"] = pool_bytes(events)
    used = expandable if settings.expandable_segments else native
    target = with_communicators(with_libraries(request.target, traced), traced)
    low, high, reasons = _interval(traced, used.reserved_bytes, target)
    if "pool" not in reserved:
        most = format_mib(_MOST_REPLAYED_BYTES)
        reasons += (f"The smallest MemoryPool is not searched for: the peak is above {most}.",)
    return Estimate(
        target=target,
        steps=request.steps,
        parameters=traced.parameters,
        peak_requested_bytes=events.peak_live_bytes,
        peak_allocated_bytes=used.allocated_bytes,
        reserved_bytes=reserved,
        device_bytes=used.reserved_bytes + target.outside_bytes,
        device_low_bytes=low,
        device_high_bytes=high,
        uncertain=reasons,
        peak=find_peak(traced),
        guesses=traced.guesses,
        attention=traced.attention,
        trace=traced,
        settings=settings,
        request=request,
    )


def with_libraries(target: Target, traced: Trace) -> Target:
    """Add the first uses of libraries of which the trace calls operators, where measured."""
    used = (
        size
        for library, size in target.library_bytes.items()
        if any(name.startswith(_LIBRARIES.get(library, ())) for name in traced.operators)
    )
    extra = sum(used)
    return replace(
        target,
        outside_bytes=target.outside_bytes + extra,
        outside_low_bytes=target.outside_low_bytes + extra,
        outside_high_bytes=target.outside_high_bytes + extra,
    )


def with_communicators(target: Target, traced: Trace) -> Target:
    """Add what NCCL takes for the process groups that the step has made."""
    size, low, high = communicator_bytes(
        target,
        ranks=traced.world_size,
        count=traced.groups,
        all_to_all=any(map(is_all_to_all, traced.operators)),
    )
    return replace(
        target,
        outside_bytes=target.outside_bytes + size,
        outside_low_bytes=target.outside_low_bytes + low,
        outside_high_bytes=target.outside_high_bytes + high,
    )


def pool_bytes(events: simulate.Events) -> int:
    """Return the smallest capacity of a pool that completes, found by the pool's own core."""
    if not len(events):
        return 0

    def completes(capacity_bytes: int) -> bool:
        outcome = simulate.replay(events, capacity_bytes=capacity_bytes, page_bytes=_PAGE_BYTES)
        return outcome.failure is None

    return simulate.find_min_capacity(events, page_bytes=_PAGE_BYTES, completes=completes)


def _interval(traced: Trace, reserved: int, target: Target) -> tuple[int, int, tuple[str, ...]]:
    low, high = reserved + target.outside_low_bytes, reserved + target.outside_high_bytes
    reasons = [target.assumed] if target.assumed else []
    if traced.world_size > 1 and traced.groups:
        known = "measured between two GPUs" if target.communicator_bytes else "assumed"
        reasons.append(
            f"NCCL's memory for the process groups ({traced.groups} of up to {traced.world_size} "
            f"ranks) is {known}."
        )
    if traced.assumed_bytes:
        # Workspaces of one moment only: the largest bounds what all of them can add to the peak.
        largest = max(traced.assumed_bytes.values())
        low, high = low - largest, high + largest
        names = ", ".join(sorted(traced.assumed_bytes))
        reasons.append(
            f"Workspaces of {names} follow a formula, up to {format_mib(largest)} at once: cuDNN's "
            "choice for these shapes has not been measured (vramkit calibrate does on your GPU)."
        )
    high += sum(traced.more_bytes.values())
    reasons += traced.more_bytes
    if traced.unknown:
        reasons.append(
            f"What {', '.join(traced.unknown)} allocate inside is not known; their results are "
            "counted."
        )
    if "vramkit::bias_relu_" in traced.operators:
        reasons.append(
            "vramkit's convolutions with ReLU are counted as PyTorch's convolution and a pass: the "
            "first call of each shape on the GPU tries other kernels, whose results and workspaces "
            "come on top for a moment, and may choose one with another workspace."
        )
    if traced.guesses:
        reasons.append("Some results depend on data; what was guessed is listed.")
    return low, high, tuple(reasons)


def _wrong(name: str, value: object, wanted: str) -> ArgumentTypeError:
    return ArgumentTypeError(f"{name} must be {wanted}, got {value!r} of {type(value).__name__}")


def _checked_model(model: Any) -> Any:
    if model is None or not (isinstance(model, torch.nn.Module) or callable(model)):
        raise ArgumentTypeError(
            "estimate needs a model (a module or a function that returns one) with a sample of its "
            f"input, or step=, got {type(model).__name__}"
        )
    return model


def _check_step(step: Any, others: tuple[Any, ...]) -> None:
    if not callable(step):
        raise ArgumentTypeError(
            "step must be a function that builds the step and returns a function that runs it, got "
            f"{type(step).__name__}"
        )
    if any(other is not None for other in others):
        raise ArgumentTypeError(
            "step= brings model, input, optimizer, loss and autocast itself; pass either step= or "
            "a model with its sample_input"
        )
