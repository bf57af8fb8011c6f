"""Times of the GPU: work is captured in a CUDA graph, over data that rotates through buffers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

# More than the L2 cache of any GPU of today.
ROTATED_BYTES = 256 << 20


def copies_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return so many random tensors alike that together they exceed the L2 cache."""
    size = max(1, tensor.numel() * tensor.element_size())
    return [torch.randn_like(tensor) for _ in range(min(32, ROTATED_BYTES // size + 2))]


def captured(work: Callable[[Any], object], inputs: Sequence[Any]) -> Callable[[], None]:
    """Return what replays the work on all inputs, warmed up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for given in (*inputs[:3], *inputs[:3]):
            work(given)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for given in inputs:
            work(given)
    return graph.replay


def sample_ms(replay: Callable[[], object], runs: int) -> float:
    """Return the milliseconds of one of the runs that a replay makes."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(200_000)
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / runs


def ceilings() -> tuple[float, float]:
    """Return the GPU's copy rate in bytes and its bfloat16 matmul rate in operations, per ms."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy = min(sample_ms(lambda: b.copy_(a), 1) for _ in range(10))
    matmul = min(sample_ms(lambda: m @ m, 1) for _ in range(10))
    return 2 * a.numel() / copy, 2 * 8192**3 / matmul
