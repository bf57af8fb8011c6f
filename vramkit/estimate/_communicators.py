"""What NCCL takes for its communicators, outside PyTorch's allocator."""

from __future__ import annotations

from vramkit.estimate._target import Target

_MIB = 1 << 20
# Reports of NCCL's memory: 544 MB for two ranks and 688 MB for more on A100 (NVIDIA/nccl#964);
# 3.3 GB more after the first all-to-all on eight H100 (NVIDIA/nccl#1685).
_PAIR, _GROUP, _ALL_TO_ALL = 544_000_000, 688_000_000, 3_300_000_000


def communicator_bytes(
    target: Target, *, ranks: int, count: int, all_to_all: bool
) -> tuple[int, int, int]:
    """Return the bytes, the least and the most that are plausible.

    Measured where ``vramkit calibrate`` has measured NCCL on the target, and otherwise assumed from
    reports of its users, as one figure for all communicators.

    Args:
        target: The GPU.
        ranks: How many there are.
        count: How many communicators each of them has.
        all_to_all: Whether one of them exchanges all to all.

    >>> from vramkit.estimate import find_target
    >>> communicator_bytes(find_target("h100"), ranks=8, count=1, all_to_all=False)
    (688000000, 67108864, 1376000000)
    """
    if ranks == 1 or count == 0:
        return 0, 0, 0
    measured = target.communicator_bytes
    if measured:
        size = measured["first"] + (count - 1) * measured["further"]
        size += measured["all_to_all"] if all_to_all else 0
        return size, size, 2 * size
    size = _PAIR if ranks == 2 else _GROUP
    return size, 64 * _MIB, 2 * size + (_ALL_TO_ALL if all_to_all else 0)
