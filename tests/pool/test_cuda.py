"""What a pool asks of PyTorch's side of a GPU, with PyTorch's answers made up."""

import re
from typing import Any

import pytest
import torch

from vramkit import MemoryPool
from vramkit._core import CorePool
from vramkit.errors import PoolBusyError
from vramkit.pool import _close, _cuda
from vramkit.pool._device import CPU, PoolDevice
from vramkit.pool._report import format_summary

MIB = 1 << 20


def _segment(address: int, total: int, allocated: int, **more: object) -> dict[str, Any]:
    found = {"device": 0, "address": address, "total_size": total, "allocated_size": allocated}
    return {**found, "segment_pool_id": (0, 0), **more}


@pytest.fixture
def of_a_pool() -> int:
    """An address in a pool."""
    pool = CorePool.create(backend="host", label="x", capacity_bytes=8 * MIB)
    return pool.alloc(MIB)


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch, of_a_pool: int) -> None:
    segments = [
        _segment(0x1000, 20 * MIB, 15 * MIB),
        _segment(0x9000, 30 * MIB, 30 * MIB),
        _segment(0x2000, 7 * MIB, 7 * MIB, segment_pool_id=(0, 3)),
        _segment(0x3000, 100 * MIB, 0, device=1),
        _segment(of_a_pool, 1000 * MIB, 10),
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (400 * MIB, 1000 * MIB))


def test_what_is_held_outside_the_pools() -> None:
    assert _cuda.held_outside_pools(0) == (7 * MIB, 50 * MIB)
    assert _cuda.held_outside_pools(1) == (0, 100 * MIB)
    assert _cuda.held_outside_pools(2) == (0, 0)


def test_the_device_s_memory_in_words() -> None:
    assert _cuda.free_bytes(0) == 400 * MIB
    assert _cuda.describe_memory(0) == (
        "of the 1000.0 MiB of cuda:0 only 400.0 MiB are free now (PyTorch's own allocator keeps "
        "5.0 MiB that no tensor uses: torch.cuda.empty_cache() frees most of it)"
    )
    assert _cuda.describe_memory(2) == "of the 1000.0 MiB of cuda:2 only 400.0 MiB are free now"


def test_the_summary_lists_what_is_outside(pool: MemoryPool) -> None:
    table = format_summary(pool.stats(), "title", outside=[("By others", 3 * MIB)])
    assert {len(line) for line in table.splitlines()} == {77}
    assert "Held on the device outside the pool" in table
    assert re.search(r"\| By others +\| +3\.0 MiB\|", table)
    assert "outside the pool" not in pool.memory_summary()


class _Graph:
    """Stands for torch.cuda.CUDAGraph: an instance of a Python class."""

    def __init__(self) -> None:
        self.own = self  # a cycle, as a graph that only the garbage collector can free


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda which: calls.append(f"wait {which}"))
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: calls.append("drop"), raising=False
    )
    return calls


def test_workspaces_are_dropped_when_no_graph_is_alive(dropped: list[str]) -> None:
    _Graph()
    assert _cuda.drop_workspaces(5) == ""
    assert dropped == ["wait 5", "drop"]


def test_workspaces_stay_for_a_graph(dropped: list[str]) -> None:
    graph = _Graph()
    assert _cuda.drop_workspaces(5).startswith("1 CUDA graph still in memory may use")
    assert dropped == []
    del graph


def test_close_drops_them_only_when_something_is_in_the_way(
    dropped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = CorePool.create(backend="host", label="cuda:5", capacity_bytes=8 * MIB)
    workspace = core.alloc(4 * MIB)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: core.free(workspace))
    _close.close(core, PoolDevice(5))
    assert dropped == ["wait 5"]
    empty = CorePool.create(backend="host", label="cuda:5", capacity_bytes=8 * MIB)
    _close.close(empty, PoolDevice(5))
    assert dropped == ["wait 5"]


def test_close_names_what_remains_and_why(dropped: list[str]) -> None:
    core = CorePool.create(backend="host", label="cuda:5", capacity_bytes=64 * MIB)
    addresses = [core.alloc(size * MIB) for size in range(1, 9)] + [core.alloc(9), core.alloc(8)]
    addresses.append(core.alloc(7))
    graph = _Graph()
    with pytest.raises(PoolBusyError) as caught:
        _close.close(core, PoolDevice(5))
    del graph
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("cuda:5: cannot close: the pool still holds 11 live blocks ")
    assert lines[1] == "The 10 largest:"
    assert lines[2] == f"       8.0 MiB at {addresses[7]:#x}"
    assert lines[11] == f"           8 B at {addresses[9]:#x}"
    assert lines[12].startswith("1 CUDA graph still in memory")
    assert len(lines) == 13


def test_close_on_the_cpu_asks_nobody(dropped: list[str]) -> None:
    core = CorePool.create(backend="host", label="cpu", capacity_bytes=8 * MIB)
    address = core.alloc(100)
    with pytest.raises(PoolBusyError, match="\nThe largest:"):
        _close.close(core, CPU)
    core.free(address)
    _close.close(core, CPU)
    assert dropped == []
