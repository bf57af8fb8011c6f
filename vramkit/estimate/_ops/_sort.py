"""Sorting and scanning: the temporary storage of CUB, as recorded on an H100."""

from __future__ import annotations

from vramkit.estimate._ops._cub import ALIGNMENT, UNIQUE_TILE, aligned, scan_bytes
from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Take, scratch, size_of

SCAN_BYTES = 1279
_SHORT_SCAN_BYTES = 1023
# A vector of so many elements is sorted by one block of threads, one of more by CUB.
_ONE_BLOCK = 4096
# Up to so many pairs CUB takes the kernel that keeps its counts in one piece.
_FEW_PAIRS = 16_384
_INDEX_BYTES = 8
# Pairs of 64 bits in a tile that is sorted alone.
_MERGED_TILE = 2048


def sort_bytes(pairs: int, key_bytes: int = 8) -> int:
    """Return the temporary storage for sorting pairs of a key and a 64-bit index.

    >>> sort_bytes(4096), sort_bytes(8192), sort_bytes(16384)
    (83455, 150015, 283135)
    """
    counts = 16_895 + pairs // 4 if pairs <= _FEW_PAIRS else 3_876 + int(0.2723 * pairs)
    return (key_bytes + _INDEX_BYTES) * pairs + counts


def index_sort_bytes(pairs: int) -> int:
    """Return the temporary storage for sorting the indices of ``index_put``, whose range is known.

    >>> index_sort_bytes(16384), index_sort_bytes(32768)
    (270847, 537087)
    """
    return 2 * _INDEX_BYTES * pairs + 4_607 + pairs // 4


def merge_sort_bytes(pairs: int) -> int:
    """Return the temporary storage for sorting pairs of 64 bits by a comparison of one's own.

    As CUB's ``DispatchMergeSort`` computes it; not recorded.

    >>> merge_sort_bytes(2), merge_sort_bytes(100_000)
    (1023, 1600511)
    """
    partitions = 4 * (1 + -(-pairs // _MERGED_TILE))
    return aligned(partitions) + 2 * aligned(_INDEX_BYTES * pairs) + ALIGNMENT - 1


def unique_bytes(pairs: int) -> int:
    """Return the temporary storage for finding the pairs of 64 bits whose keys differ.

    The scan inside is as recorded for ``nn.EmbeddingBag``; Thrust adds the number that it finds.

    >>> unique_bytes(1280)
    1791
    """
    return ALIGNMENT + aligned(scan_bytes(pairs, UNIQUE_TILE)) + ALIGNMENT - 1


def _sort(call: Call) -> Plan:
    values = call.outputs[0]
    count = values.numel()
    if values.dim() != 1 or count <= _ONE_BLOCK:
        return []
    return [
        Give(0),
        Give(1),
        Take(8 * count),
        *scratch(sort_bytes(count, values.element_size())),
        Drop(),
    ]


def _scan(call: Call) -> Plan:
    """Inputs of another dtype, such as masks, are converted first."""
    x, result = call.args[0], call.outputs[0]
    scan = scratch(_SHORT_SCAN_BYTES) if x.dim() == 1 else []
    if x.dtype == result.dtype:
        return scan
    return [Give(0), Take(size_of(result)), *scan, Drop()]


RULES = {
    **dict.fromkeys(("aten::sort", "aten::sort.stable"), _sort),
    "aten::cumsum": _scan,
}
