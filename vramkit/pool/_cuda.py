"""What a pool asks of PyTorch's side of a CUDA device."""

import gc
from typing import Any

from vramkit._core import owner
from vramkit.units import counted, format_mib


def start(ordinal: int) -> None:
    """Start CUDA and the device's context, as PyTorch's first tensor there would.

    Raises:
        RuntimeError: CUDA cannot start; for instance it was started before this process was forked.
    """
    import torch

    torch.cuda.init()
    # Asking for the memory makes the context; PyTorch's allocator is there since init().
    torch.cuda.mem_get_info(ordinal)


def free_bytes(ordinal: int) -> int:
    """Bytes of the device's memory that nobody holds now."""
    import torch

    return int(torch.cuda.mem_get_info(ordinal)[0])


def describe_memory(ordinal: int) -> str:
    """The device's memory, and what could be freed of it, for an error."""
    import torch

    free, total = torch.cuda.mem_get_info(ordinal)
    text = f"of the {format_mib(total)} of cuda:{ordinal} only {format_mib(free)} are free now"
    unused = sum(
        segment["total_size"] - segment["allocated_size"] for segment in _native_segments(ordinal)
    )
    if unused:
        text += (
            f" (PyTorch's own allocator keeps {format_mib(unused)} that no tensor uses: "
            "torch.cuda.empty_cache() frees most of it)"
        )
    return text


def held_outside_pools(ordinal: int) -> tuple[int, int]:
    """What PyTorch holds on the device and no vramkit pool does, in bytes.

    Returns:
        By CUDA graphs and ``torch.cuda.MemPool``; by PyTorch's own allocator otherwise.
    """
    private = native = 0
    for segment in _native_segments(ordinal):
        # PyTorch gives graphs and MemPools pools of their own; (0, 0) is none.
        if tuple(segment.get("segment_pool_id", (0, 0))) == (0, 0):
            native += segment["total_size"]
        else:
            private += segment["total_size"]
    return private, native


def drop_workspaces(ordinal: int) -> str:
    """Let go of the workspaces that cuBLAS keeps for ever, unless a CUDA graph may use them.

    A captured graph holds the addresses of the workspaces of its time and does not own them, so
    they may go only when there is no graph. Every graph of PyTorch is a ``torch.cuda.CUDAGraph``,
    also those of ``torch.compile``; as instances of a Python class they are all known to the
    garbage collector, dead ones until it ran.

    Returns:
        Why they were kept, or nothing.
    """
    import torch

    gc.collect()
    graph = torch.cuda.CUDAGraph
    # type(), not isinstance(): that would ask proxies for the class they stand for.
    graphs = sum(1 for thing in gc.get_objects() if issubclass(type(thing), graph))
    if graphs:
        return (
            f"{counted(graphs, 'CUDA graph')} still in memory may use cuBLAS's workspaces, so "
            "these were not dropped; delete the graphs first (for torch.compile: "
            "torch.compiler.reset())"
        )
    torch.cuda.synchronize(ordinal)
    torch._C._cuda_clearCublasWorkspaces()
    return ""


def _native_segments(ordinal: int) -> list[dict[str, Any]]:
    import torch

    return [
        segment
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == ordinal and owner(segment["address"]) == 0
    ]
