"""The settings of PyTorch's caching allocator, as ``PYTORCH_ALLOC_CONF`` gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from vramkit.errors import InvalidArgumentError

_MIB = 1 << 20
_UNLIMITED = 1 << 62

# The constants of c10/core/AllocatorConfig.h, torch 2.11 to 2.15.
MIN_BLOCK_BYTES = 512
SMALL_BYTES = _MIB
SMALL_SEGMENT_BYTES = 2 * _MIB
MIN_LARGE_BYTES = 10 * _MIB
ROUND_LARGE_BYTES = 2 * _MIB

# These change what happens when, not which segments there are.
_WITHOUT_EFFECT = frozenset(
    {"pinned_use_cuda_host_register", "pinned_num_register_threads", "throw_on_cudamalloc_oom"}
)
# Options in MiB: their fields, and the least that PyTorch takes.
_IN_MIB = {
    "max_split_size_mb": ("max_split_bytes", 20),
    "max_non_split_rounding_mb": ("max_non_split_rounding_bytes", 20),
    "large_segment_size_mb": ("large_segment_bytes", 0),
}


@dataclass(frozen=True)
class Settings:
    """What changes the allocator's rules.

    Attributes:
        expandable_segments: Segments grow, by mapping memory behind them.
        max_split_bytes: Blocks from this size on are not split.
        max_non_split_rounding_bytes: How much larger a block may be that is given whole.
        roundup_power2_divisions: Requests are rounded up to this part of a power of two; 0 for no
            such rounding.
        large_segment_bytes: Size of a segment for requests of 1 to 10 MiB, and of the pieces by
            which expandable segments grow.
    """

    expandable_segments: bool = False
    max_split_bytes: int = _UNLIMITED
    max_non_split_rounding_bytes: int = 20 * _MIB
    roundup_power2_divisions: int = 0
    large_segment_bytes: int = 20 * _MIB

    def round_size(self, request_bytes: int) -> int:
        """Return the bytes of the block that a request needs.

        >>> Settings().round_size(1), Settings().round_size(513)
        (512, 1024)
        >>> Settings(roundup_power2_divisions=4).round_size(1200 << 10) >> 10
        1280
        """
        if request_bytes < MIN_BLOCK_BYTES:
            return MIN_BLOCK_BYTES
        divisions = self.roundup_power2_divisions
        if divisions > 1 and request_bytes > MIN_BLOCK_BYTES * divisions:
            return _round_to_division(request_bytes, divisions)
        return -(-request_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES

    def segment_size(self, block_bytes: int) -> int:
        """Return the bytes of the segment that is made for a block.

        >>> [Settings().segment_size(size << 20) >> 20 for size in (1, 2, 10, 13)]
        [2, 20, 10, 14]
        """
        if block_bytes <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if block_bytes < MIN_LARGE_BYTES:
            return self.large_segment_bytes
        return -(-block_bytes // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


def _round_to_division(size_bytes: int, divisions: int) -> int:
    floor = 1 << (size_bytes.bit_length() - 1)
    if floor == size_bytes:
        return size_bytes
    part = max(floor // divisions, 1)
    return -(-size_bytes // part) * part


def parse_settings(text: str) -> Settings:
    """Read what ``PYTORCH_ALLOC_CONF`` holds.

    Args:
        text: ``option:value`` pairs with commas in between.

    Raises:
        InvalidArgumentError: An option is unknown, cannot be read, or is not simulated.

    >>> parse_settings("expandable_segments:True,roundup_power2_divisions:8")
    ... # doctest: +ELLIPSIS
    Settings(expandable_segments=True, ..., roundup_power2_divisions=8, ...)
    """
    settings = Settings()
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in pair.partition(":"))
        settings = _with_option(settings, name, value)
    return settings


def _with_option(settings: Settings, name: str, value: str) -> Settings:
    if name in _WITHOUT_EFFECT:
        return settings
    if name == "expandable_segments" and value.lower() in ("true", "false"):
        return replace(settings, expandable_segments=value.lower() == "true")
    if name == "backend" and value == "native":
        return settings
    if name in _IN_MIB and re.fullmatch(r"[0-9]{1,9}", value):
        field, least = _IN_MIB[name]
        if int(value) < least:
            raise InvalidArgumentError(
                f"{name}:{value} is too small: PyTorch's allocator takes {least} and more"
            )
        changed: dict[str, Any] = {field: int(value) * _MIB}
        return replace(settings, **changed)
    if name == "roundup_power2_divisions" and re.fullmatch(r"[0-9]{1,9}", value):
        if int(value).bit_count() > 1:
            raise InvalidArgumentError(
                f"{name}:{value} is no power of two, which PyTorch's allocator needs"
            )
        return replace(settings, roundup_power2_divisions=int(value))
    raise InvalidArgumentError(
        f"the allocator's option {name}:{value} is not simulated; simulated are "
        "expandable_segments, max_split_size_mb, max_non_split_rounding_mb, "
        "large_segment_size_mb, and roundup_power2_divisions with one number. "
        "Leave the others out for the estimate"
    )
