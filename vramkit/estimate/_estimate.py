"""The result of an estimate."""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vramkit import simulate
from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.estimate import _report, _timeline
from vramkit.estimate._allocators import NativeAllocator, Settings, replay
from vramkit.estimate._peak import Peak
from vramkit.estimate._recorder import Trace
from vramkit.estimate._target import Target
from vramkit.estimate._targets import find_target, targets
from vramkit.units import counted, parse_bytes

if TYPE_CHECKING:
    import torch

    from vramkit.estimate._advice import Advice
    from vramkit.estimate._api import Request

_DEVICE = re.compile(r"cuda(:\d+)?|cpu")


@dataclass(frozen=True)
class Estimate:
    """What a step needs on a GPU. Printing it gives a table.

    Attributes:
        target: The GPU.
        steps: Number of steps that were traced.
        parameters: Number of elements of all parameters.
        peak_requested_bytes: Most bytes that tensors and operators have at once.
        peak_allocated_bytes: What ``torch.cuda.max_memory_allocated`` would say.
        reserved_bytes: What the process reserves: by PyTorch's allocator (``"native"``), by the
            same with ``expandable_segments:True`` (``"expandable"``), and the smallest capacity of
            a :class:`vramkit.MemoryPool` that completes (``"pool"``; missing where the
            peak is above 8 TiB).
        device_bytes: Used memory of the device: what is reserved under the allocator's settings,
            and what the driver, the context and the libraries take.
        device_low_bytes: Least of it that is plausible.
        device_high_bytes: Most of it that is plausible.
        uncertain: Why there is an interval, in sentences.
        peak: What is live when most bytes are.
        guesses: Results that depend on data and were guessed, and how often.
        attention: How often each kernel of scaled dot product attention was chosen.
        trace: Every block and event.
    """

    target: Target
    steps: int
    parameters: int
    peak_requested_bytes: int
    peak_allocated_bytes: int
    reserved_bytes: dict[str, int]
    device_bytes: int
    device_low_bytes: int
    device_high_bytes: int
    uncertain: tuple[str, ...]
    peak: Peak
    guesses: dict[str, int]
    attention: dict[str, int]
    trace: Trace = field(repr=False, compare=False)
    settings: Settings = field(repr=False, compare=False)
    request: Request = field(repr=False, compare=False)

    def __str__(self) -> str:
        """Return the table."""
        return _report.to_text(self)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        return _report.to_html(self)

    @functools.cached_property
    def events(self) -> simulate.Events:
        """The allocations and frees, as :func:`vramkit.simulate.replay` takes them."""
        return self.trace.events()

    def fits(self, budget: int | str | Target | torch.device) -> bool:
        """Tell whether the step completes within a budget.

        PyTorch's allocator gives cached segments back before it fails, so a step can complete in
        less than ``device_bytes``. The memory outside the allocator counts as estimated; for
        certainty compare the budget with ``device_high_bytes``.

        Args:
            budget: Bytes, a size such as ``"24GiB"``, the name of a GPU, or a device of this
                machine (``"cuda:0"``), whose total memory counts.

        Raises:
            ArgumentTypeError: It is none of these.
            InvalidArgumentError: It cannot be read, or PyTorch has no such device.
        """
        room = budget_bytes(budget) - self.target.outside_bytes
        if room <= 0:
            return False
        if self.settings.expandable_segments:
            return self.reserved_bytes["expandable"] <= room
        allocator = NativeAllocator(self.settings, capacity_bytes=room)
        return replay(self.events, allocator).failed_event is None

    def advice(self, budget: int | str | Target | torch.device) -> Advice:
        """Try what would make the step fit, by tracing it again, and rank what does.

        Args:
            budget: As for :meth:`fits`.

        Raises:
            InvalidArgumentError: The budget cannot be read.
            UntraceableError: A changed step cannot be traced.
        """
        from vramkit.estimate._advice import advise

        return advise(self, budget_bytes(budget))

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as plain containers."""
        return _report.to_dict(self)

    def json(self) -> str:
        """Return all figures as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def timeline(self, path: str | os.PathLike[str]) -> Path:
        """Draw the live bytes over the events, by what they hold.

        Args:
            path: The file to write: ``.html`` or ``.png``; the latter needs the extra ``viz``.

        Raises:
            InvalidArgumentError: The name has another ending.
            MissingExtraError: Matplotlib is not installed.
        """
        return _timeline.draw(self.trace, Path(path), title=_report.title(self))

    def save_events(self, path: str | os.PathLike[str]) -> Path:
        """Write the events as a trace that ``vramkit simulate`` replays.

        Args:
            path: The ``.npz`` file to write.
        """
        events = self.events
        file = Path(path)
        with file.open("wb") as stream:
            np.savez_compressed(
                stream,
                action=np.where(events.op == 0, 0, 1).astype(np.uint8),
                addr=events.block_id + 1,
                size=events.size_bytes,
                stream=events.stream,
                actions=np.array(["alloc", "free_completed"]),
            )
        return file


def budget_bytes(budget: int | str | Target | torch.device) -> int:
    """Return the bytes that a budget names.

    Raises:
        ArgumentTypeError: It is something else.
        InvalidArgumentError: It cannot be read.
    """
    if isinstance(budget, Target):
        return budget.total_bytes
    if isinstance(budget, int):
        return parse_bytes(budget, name="budget")
    if isinstance(budget, str):
        if _DEVICE.fullmatch(budget.strip()):
            return _device_bytes(budget.strip())
        if not budget.strip()[:1].isdigit():
            return find_target(budget).total_bytes
        names = ", ".join(target.name for target in targets()[:3])
        return parse_bytes(budget, name="budget", also=f"the name of a GPU such as {names}")
    import torch

    if not isinstance(budget, torch.device):
        raise ArgumentTypeError(
            "budget must be a number of bytes, a text such as '24GiB', the name of a GPU, a Target "
            f"or a device, got {budget!r} of {type(budget).__name__}"
        )
    return _device_bytes(budget)


def _device_bytes(device: str | torch.device) -> int:
    import torch

    found = torch.device(device)
    if found.type != "cuda" or (found.index or 0) >= torch.cuda.device_count():
        raise InvalidArgumentError(
            f"budget is the device {str(found)!r}, and PyTorch sees "
            f"{counted(torch.cuda.device_count(), 'CUDA device')} here; give a size such as "
            "'24GiB' or the name of a GPU such as 'a100-80gb'"
        )
    return int(torch.cuda.get_device_properties(found).total_memory)
