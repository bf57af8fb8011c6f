"""Memory beside the model: what PyTorch's allocator does not see, and allowances."""

from __future__ import annotations

from vramkit.estimate._communicators import communicator_bytes
from vramkit.estimate._target import Target
from vramkit.estimate.config._architecture import Weight
from vramkit.estimate.config._parallel import Parallel
from vramkit.estimate.config._results import Amount


def outside_allocator(target: Target) -> Amount:
    """The context, the libraries' code and what the driver keeps."""
    return Amount(
        "context and libraries",
        target.outside_bytes,
        target.outside_low_bytes,
        target.outside_high_bytes,
        "measured" if target.measured else "assumed",
    )


def communicators(parallel: Parallel, target: Target) -> list[Amount]:
    """Buffers of NCCL; none on one GPU."""
    if parallel.gpus == 1:
        return []
    # One for each way in which ranks split the model; all-to-all where experts are spread.
    ways = (
        *(parallel.tensor, parallel.pipeline, parallel.data),
        *(parallel.context, parallel.expert),
    )
    size, low, high = communicator_bytes(
        target,
        ranks=parallel.gpus,
        count=sum(way > 1 for way in ways),
        all_to_all=parallel.expert > 1,
    )
    measured = "measured between two GPUs"
    how = measured if target.communicator_bytes else "assumed, from reports of NCCL's users"
    return [Amount("communicators", size, low, high, how)]


def has_bias(weight: Weight) -> bool:
    """Tell whether a tensor is a bias, which cuBLASLt adds to a product."""
    return weight.name.endswith("bias") and not weight.buffer


def training_workspaces(target: Target, *, biased: bool) -> Amount:
    """Workspaces of the threads of forward and backward, which have a handle of cuBLAS each.

    Args:
        target: The GPU.
        biased: Whether the forward uses cuBLASLt.
    """
    size = 2 * target.cublas_bytes + (target.cublas_lt_bytes if biased else 0)
    return Amount("cuBLAS workspaces", size, size, 2 * size, "one stream, two threads")


def serving_workspaces(target: Target, *, biased: bool) -> Amount:
    """Workspaces of cuBLAS, and of cuBLASLt where it is used, for one stream."""
    size = target.cublas_bytes + (target.cublas_lt_bytes if biased else 0)
    return Amount("cuBLAS workspaces", size, size, 2 * size, "one stream")
