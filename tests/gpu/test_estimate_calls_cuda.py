"""Estimated calls against what the allocator of a GPU records of them, block by block."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable

import pytest
import torch
from helpers.estimated_calls import CALLS

from vramkit.estimate import Target, find_target
from vramkit.estimate._recorder import Trace
from vramkit.estimate._trace import trace

_ENTRIES = 100_000
_SIGNS = {"alloc": 1, "free_requested": -1}
# By step: a size that was allocated or, below zero, freed, and the number of its stream.
Changes = list[list[tuple[int, int]]]


def _target() -> Target:
    name = torch.cuda.get_device_name()
    return find_target("h200" if "H200" in name else "h100" if "H100" in name else "a100-80gb")


def _recorded(make_step: Callable[[], Callable[[], None]], steps: int) -> Changes:
    """Run the steps; streams are numbered in the order of their first use."""
    step, found = make_step(), []
    numbers = {torch.cuda.default_stream().cuda_stream: 0}
    for _ in range(steps):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.memory._record_memory_history(
            "all", context=None, max_entries=_ENTRIES, clear_history=True
        )
        try:
            step()
            [entries, *_] = torch.cuda.memory._snapshot()["device_traces"]
        finally:
            torch.cuda.memory._record_memory_history(None)
        entries = [each for each in entries if each["action"] in _SIGNS]
        streams = [numbers.setdefault(each["stream"], len(numbers)) for each in entries]
        sizes = [_SIGNS[each["action"]] * each["size"] for each in entries]
        found.append(list(zip(sizes, streams, strict=True)))
    return found


def _estimated(found: Trace) -> Changes:
    ends = [*found.step_starts, len(found.changes)]
    changes = [
        (1, found.blocks[change]) if change >= 0 else (-1, found.blocks[~change])
        for change in found.changes
    ]
    pairs = [(sign * block.size_bytes, block.stream) for sign, block in changes]
    return [pairs[begin:end] for begin, end in itertools.pairwise(ends)]


def _without_workspaces(changes: Changes, target: Target) -> Changes:
    """What cuBLAS keeps is there already, unless a stream is new to the process."""
    kept = (target.cublas_bytes, target.cublas_lt_bytes)
    return [[each for each in step if each[0] not in kept] for step in changes]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_allocates_what_is_estimated(name: str) -> None:
    make_step, steps = CALLS[name]
    target = _target()
    _recorded(make_step, steps)  # libraries allocate at their first use
    recorded = _without_workspaces(_recorded(make_step, steps), target)
    found = trace(make_step, target=target, steps=steps)
    assert recorded == _without_workspaces(_estimated(found), target)
    assert found.unknown == ()
