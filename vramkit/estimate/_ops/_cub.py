"""Temporary storage of CUB, as recorded on an H100 and an H200 (CUDA 13.0)."""

from __future__ import annotations

from vramkit.estimate._target import Target

# Parts of temporary storage begin at multiples of this, and the first one is moved there.
ALIGNMENT = 256
# Elements of a tile of the scans that find those that differ and those that are not zero, and of
# scans that add up.
UNIQUE_TILE, UNIQUE_PAIRS_TILE, SELECT_TILE = 4480, 4928, 4224
SUM_TILE, WIDE_SUM_TILE, HALF_SUM_TILE, EXCLUSIVE_TILE, BY_KEY_TILE = 1920, 960, 7680, 896, 1536
# Up to so many pairs one block of threads sorts alone.
_ONE_BLOCK = 2304
# Elements of a tile of a radix sort with 64-bit values, by the bytes of a key, and without values.
_RADIX_TILES = {1: 5632, 2: 5632, 4: 5376, 8: 4608}
_KEYS_TILE = 5760
_DIGIT_BITS, _DIGIT_BYTES, _RADIX_TILE_BYTES = 8, 2048, 1024
# Pairs of 64 bits in a tile that is sorted alone.
_MERGED_TILE = 2048
# A reduction takes one block of threads up to so many elements, else five waves of blocks.
_REDUCED_TILE, _REDUCING_THREADS, _WAVES = 4096, 256, 5
_WARP = 32


def aligned(size_bytes: int) -> int:
    """Return the bytes up to where the next part may begin.

    >>> aligned(1), aligned(512)
    (256, 512)
    """
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def scan_bytes(count: int, tile: int, element_bytes: int = 8) -> int:
    """Return the storage of a scan: two elements for each tile and each thread of a warp.

    >>> scan_bytes(1280, UNIQUE_TILE), scan_bytes(10_000_000, SELECT_TILE, 4)
    (1279, 19711)
    """
    return 2 * ALIGNMENT - 1 + aligned(2 * element_bytes * (-(-count // tile) + _WARP))


def radix_bytes(
    pairs: int, key_bytes: int = 8, value_bytes: int = 8, bits: int | None = None
) -> int:
    """Return the storage for sorting pairs of a key and a value by the key.

    Args:
        pairs: How many.
        key_bytes: Bytes of a key.
        value_bytes: Bytes of a value, or 0 where there are only keys.
        bits: How many bits of a key differ; all of them by default.

    >>> radix_bytes(4096), radix_bytes(100_000, 4), radix_bytes(16384, bits=14)
    (83455, 1228287, 270847)
    """
    if pairs <= _ONE_BLOCK:
        return 1
    passes = -(-(8 * key_bytes if bits is None else bits) // _DIGIT_BITS)
    buffers = aligned(key_bytes * pairs) + aligned(value_bytes * pairs) if passes > 1 else 0
    tiles = -(-pairs // (_RADIX_TILES[key_bytes] if value_bytes else _KEYS_TILE))
    counts = aligned(passes * _DIGIT_BYTES) + ALIGNMENT + _RADIX_TILE_BYTES * tiles
    return ALIGNMENT - 1 + buffers + counts


def merge_sort_bytes(pairs: int) -> int:
    """Return the storage for sorting pairs of 64 bits by a comparison of one's own.

    >>> merge_sort_bytes(2), merge_sort_bytes(100_000)
    (1023, 1600511)
    """
    partitions = 4 * (1 + -(-pairs // _MERGED_TILE))
    return aligned(partitions) + 2 * aligned(8 * pairs) + ALIGNMENT - 1


def unique_bytes(pairs: int) -> int:
    """Return the storage for finding the pairs of 64 bits whose keys differ, and their number.

    >>> unique_bytes(1280), unique_bytes(10_000_000)
    (1535, 17663)
    """
    return ALIGNMENT + aligned(scan_bytes(pairs, UNIQUE_PAIRS_TILE, 4)) + ALIGNMENT - 1


def reduction_bytes(count: int, target: Target) -> int:
    """Return the storage for adding up 32-bit numbers."""
    if count <= _REDUCED_TILE:
        return 1
    blocks = target.multi_processors * (target.threads_per_multi_processor // _REDUCING_THREADS)
    return aligned(4 * _WAVES * blocks) + ALIGNMENT - 1
