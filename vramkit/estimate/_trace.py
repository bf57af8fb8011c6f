"""Traces a step: what it allocates on the device, in order."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any, Literal

import torch

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, UntraceableError
from vramkit.estimate import _guesses
from vramkit.estimate._interrupts import interrupts_deferred
from vramkit.estimate._ranks import Groups, check_world_size, ranks
from vramkit.estimate._recorder import Trace
from vramkit.estimate._scope import tracing
from vramkit.estimate._target import Target
from vramkit.estimate._tracer import Tracer
from vramkit.units import format_mib

_CALLED = (
    "; return the function of the step, and where you have written step=make_step(), pass "
    "make_step itself, without calling it"
)
Guess = Literal["refuse", "allow"]
_FUNCTIONS = (FunctionType, MethodType, functools.partial)
# Called with the number of steps done and their total.
Progress = Callable[[int, int], None]


def trace(
    make_step: Callable[[], Callable[[], Any]],
    *,
    target: Target,
    steps: int = 3,
    guess: Guess = "refuse",
    progress: Progress | None = None,
    world_size: int | None = None,
) -> Trace:
    """Build a step and run it a few times, on fakes.

    Args:
        make_step: Builds model, optimizer and data on ``"cuda"``; returns a function of a step.
        target: The GPU.
        steps: How many steps to run; some peaks need the third.
        guess: Whether results that depend on data may be guessed.
        progress: Called after each step.
        world_size: How many ranks there are; None for a program without ``torch.distributed``.

    Raises:
        ArgumentTypeError: ``make_step`` returns no function.
        InvalidArgumentError: There is no step to run, ``guess`` is unknown, or there are no ranks.
        NativeLibraryError: The pretended device cannot be built or loaded.
        ScopeError: Another estimate is running in this process.
        UntraceableError: An operator's memory cannot be known.
    """
    if steps < 1:
        raise InvalidArgumentError(f"steps must be at least 1, got {steps}")
    if guess not in ("refuse", "allow"):
        raise InvalidArgumentError(f"guess must be 'refuse' or 'allow', got {guess!r}")
    check_world_size(world_size)
    tracer = Tracer(target, guess)
    groups = Groups(world_size or 1)
    with contextlib.ExitStack() as scope:
        tracer.between_operators = scope.enter_context(interrupts_deferred())
        if world_size is not None:
            scope.enter_context(ranks(groups, mark=tracer.mark_bucket, may_stay=tracer.may_need))
        scope.enter_context(tracing(tracer, target, make_step))
        try:
            found = _run(tracer, make_step, steps, progress)
            return replace(found, world_size=groups.world_size, groups=groups.count)
        except UntraceableError:
            raise  # it says what to do, and may quote PyTorch
        except (RuntimeError, ValueError, AssertionError) as err:
            reason = _guesses.refusal_of(err)
            if reason is None:
                raise
            raise UntraceableError(reason) from err


def _run(
    tracer: Tracer,
    make_step: Callable[[], Callable[[], Any]],
    steps: int,
    progress: Progress | None,
) -> Trace:
    step: Any = make_step()
    if not callable(step):
        _drop(step)
        raise ArgumentTypeError(
            "make_step must return a function without arguments that runs one step, got "
            f"{type(step).__name__}{_CALLED if step is None else ''}"
        )
    for number in range(steps):
        tracer.begin_step()
        _check_ran(step())
        tracer.mark_gradients()
        if progress is not None:
            progress(number + 1, steps)
    tracer.check_refusal()
    return _result(tracer)


def _check_ran(result: Any) -> None:
    if isinstance(result, (Coroutine, Generator, AsyncGenerator, *_FUNCTIONS)):
        _drop(result)
        raise ArgumentTypeError(
            f"the step returned a {type(result).__name__}, so that none of it has run; make_step "
            "must return a plain function that runs one step"
        )


def _drop(result: Any) -> None:
    """Drop a coroutine without a warning that it was not awaited."""
    if isinstance(result, Coroutine | Generator):
        result.close()


def _result(tracer: Tracer) -> Trace:
    recorder = tracer.recorder
    parameters: dict[int, torch.Tensor] = {
        id(parameter): parameter
        for module in tracer.attribution.roots
        for parameter in module.parameters()
    }
    return Trace(
        blocks=tuple(recorder.blocks),
        changes=tuple(recorder.changes),
        step_starts=tuple(recorder.step_starts),
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        guesses=dict(tracer.guesses),
        attention=dict(tracer.attention),
        assumed_bytes=dict(tracer.assumed_bytes),
        unknown=tuple(sorted(tracer.unknown)),
        unmeasured=tuple(sorted(tracer.unmeasured)),
        operators=frozenset(tracer.operators),
        finite=dict(tracer.finite),
        assumptions=dict(tracer.assumptions),
        more_bytes=_more_bytes(tracer),
    )


def _more_bytes(tracer: Tracer) -> dict[str, int]:
    found = {sentence: size for sentence, size in tracer.more_bytes.values() if size}
    late = tracer.recorder.late_bytes()
    if late:
        found[
            f"Blocks for which record_stream() was called, up to {format_mib(late)} in a step, "
            "count until the program drops them; PyTorch's allocator takes them back once the "
            "other stream has caught up."
        ] = late
    return found
