"""Memory beside the model: what PyTorch's allocator does not see, and allowances."""

from __future__ import annotations

from vramkit.estimate._targets import Target
from vramkit.estimate.config._parallel import Parallel
from vramkit.estimate.config._results import Amount

_MIB = 1 << 20

# Reports of NCCL's memory: 544 MB for two ranks and 688 MB for more on A100 (NVIDIA/nccl#964);
# 3.3 GB more after the first all-to-all on eight H100 (NVIDIA/nccl#1685).
_PAIR, _GROUP, _ALL_TO_ALL = 544_000_000, 688_000_000, 3_300_000_000


def outside_allocator(target: Target) -> Amount:
    """The context, the libraries' code and what the driver keeps."""
    return Amount(
        "context and libraries",
        target.outside_bytes,
        target.outside_low_bytes,
        target.outside_high_bytes,
        "measured" if target.measured else "assumed",
    )


def communicators(parallel: Parallel) -> list[Amount]:
    """Buffers of NCCL; none on one GPU."""
    if parallel.gpus == 1:
        return []
    size = _PAIR if parallel.gpus == 2 else _GROUP
    high = 2 * size + (_ALL_TO_ALL if parallel.expert > 1 else 0)
    return [Amount("communicators", size, 64 * _MIB, high, "assumed, from reports of NCCL's users")]


def cublas(target: Target) -> Amount:
    """Workspaces of cuBLAS and cuBLASLt for one stream."""
    size = target.cublas_bytes + target.cublas_lt_bytes
    return Amount("cuBLAS workspaces", size, size, 2 * size, "one stream")
