"""Estimated calls against what the allocator of a GPU records of them, block by block."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.estimated_calls import CALLS
from helpers.phases import changes_in

from vramkit.estimate import find_target
from vramkit.estimate._trace import trace

_ENTRIES = 100_000


def _target() -> Any:
    name = torch.cuda.get_device_name()
    return find_target("h200" if "H200" in name else "h100" if "H100" in name else "a100-80gb")


def _recorded(make_step: Callable[[], Callable[[], None]], steps: int) -> list[list[int]]:
    """Run the steps; returns the sizes that each allocated and, below zero, freed."""
    step, found = make_step(), []
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
        signs = {"alloc": 1, "free_requested": -1}
        of_step = [(signs.get(each["action"], 0), each["size"]) for each in entries]
        found.append([sign * size for sign, size in of_step if sign])
    return found


@pytest.mark.parametrize("name", CALLS)
def test_a_call_allocates_what_is_estimated(name: str) -> None:
    make_step, steps = CALLS[name]
    torch.manual_seed(0)
    _recorded(make_step, steps)  # what libraries keep from their first use on is there now
    torch.manual_seed(0)
    recorded = _recorded(make_step, steps)
    found = trace(make_step, target=_target(), steps=steps)
    assert recorded == [changes_in(found, step) for step in range(steps)]
    assert found.unknown == ()
