"""Runs the demo: the same training outside the pool and inside it."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from vramkit.cli._demo._memory import MemoryRecorder
from vramkit.cli._demo._outcome import Outcome
from vramkit.cli._demo._picture import draw
from vramkit.cli._demo._progress import Progress
from vramkit.cli._demo._training import Digits, Training, steps_an_epoch, train
from vramkit.cli._status import CommandError, Status
from vramkit.pool import MemoryPool
from vramkit.units import advised_size, format_mib, parse_bytes


@dataclass(frozen=True)
class Plan:
    """What to train: how long, from which seed, and where the picture goes."""

    epochs: int
    seed: int
    out: Path


def training_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    if torch.version.hip is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def budget_for(device: torch.device) -> str:
    """A capacity that is enough; on a GPU cuBLAS alone keeps tens of MiB."""
    return "16MiB" if device.type == "cpu" else "128MiB"


def device_note(device: torch.device) -> str:
    """On which device the demo runs, and why."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "the CPU, as there is no GPU here"
    return f"the CPU: there are no pools for devices of type {accelerator.type!r}"


def run_demo(digits: Digits, device: torch.device, pool: MemoryPool, plan: Plan) -> Outcome:
    """Train twice, compare, and draw what the pool held.

    Raises:
        CommandError: The pool's budget is too small, or the picture cannot be written.
    """
    with _one_thread(), _same_kernels():
        outside = _train(digits, device, plan, "outside the pool", None)
        recorder = MemoryRecorder(pool)
        begin_s = time.perf_counter()
        try:
            with pool:
                inside = _train(digits, device, plan, "inside the pool", recorder)
        except torch.OutOfMemoryError as err:
            raise _too_small(pool, device, err) from err
        seconds = time.perf_counter() - begin_s
    stats = pool.stats()
    try:
        draw(recorder.samples, stats=stats, path=plan.out)
    except OSError as err:
        raise CommandError(
            f"--out {plan.out}: the picture cannot be written ({err}); name another file",
            status=Status.OUTPUT_LOST,
            kind=type(err).__name__,
        ) from err
    return Outcome(
        steps=len(inside.losses),
        equal_losses=int((inside.losses == outside.losses).sum()),
        final_loss=float(inside.losses[-1]),
        accuracy=inside.accuracy,
        stats=stats,
        seconds=seconds,
        samples=len(recorder.samples),
        picture=plan.out,
    )


def _too_small(pool: MemoryPool, device: torch.device, err: torch.OutOfMemoryError) -> CommandError:
    """The pool's text without its advice, which is for programs, and with what helps here."""
    budget_bytes = pool.stats().capacity_bytes
    enough = max(parse_bytes(budget_for(device)), 2 * budget_bytes)
    reason, _, _ = str(err).partition("\nTo go on:")
    return CommandError(
        f"the budget of {format_mib(budget_bytes)} is too small, try --budget "
        f"{advised_size(enough)}. {reason}",
        status=Status.DOES_NOT_FIT,
        kind=type(err).__name__,
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Images of 8 x 8 pixels are too small for more: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _same_kernels() -> Iterator[None]:
    """Losses can only be compared bit for bit where cuDNN takes the same way twice."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def _train(
    digits: Digits, device: torch.device, plan: Plan, title: str, recorder: MemoryRecorder | None
) -> Training:
    with Progress(title, line_every=2 * steps_an_epoch(digits)) as progress:
        return train(
            digits,
            device,
            epochs=plan.epochs,
            seed=plan.seed,
            look=recorder.look if recorder else _look_away,
            tell=progress,
        )


def _look_away(_: str) -> None:
    """Outside the pool there is nothing to record."""
