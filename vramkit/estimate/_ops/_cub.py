"""Temporary storage of CUB, as recorded on an H200 for ``nn.EmbeddingBag``."""

from __future__ import annotations

# Parts of temporary storage begin at multiples of this, and the first one is moved there.
ALIGNMENT = 256
# Elements of a tile of the scan that finds those that differ.
UNIQUE_TILE = 4096
_WARP = 32


def aligned(size_bytes: int) -> int:
    """Return the bytes up to where the next part may begin.

    >>> aligned(1), aligned(512)
    (256, 512)
    """
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def scan_bytes(count: int, tile: int) -> int:
    """Return the storage of a scan: 16 bytes for each tile and each thread of a warp.

    >>> scan_bytes(1280, UNIQUE_TILE)
    1279
    """
    return 2 * ALIGNMENT - 1 + aligned(16 * (-(-count // tile) + _WARP))
