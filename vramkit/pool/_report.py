"""What a pool tells about itself: statistics, blocks, and the table for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vramkit._core import Block, BlockKind, BlockState, SizeClass, frames
from vramkit.units import format_mib


@dataclass(frozen=True, kw_only=True)
class SizeClassStats:
    """Requests of one size class: more than half of ``upper_bytes``, at most ``upper_bytes``."""

    upper_bytes: int
    live_blocks: int
    live_bytes: int
    allocations: int
    frees: int


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """Counters of a pool at one moment. Sizes are bytes; counts run since the pool was made."""

    capacity_bytes: int
    page_bytes: int
    live_bytes: int
    """Requested bytes of the live blocks."""
    peak_live_bytes: int
    allocated_bytes: int
    """Live blocks with their rounding."""
    peak_allocated_bytes: int
    mapped_bytes: int
    """Pages with physical memory behind them."""
    peak_mapped_bytes: int
    held_bytes: int
    """Memory taken from the device, mapped or not."""
    free_bytes: int
    """Capacity that is in no live block."""
    largest_free_bytes: int
    """The largest contiguous free block."""
    largest_stitch_bytes: int
    """Wholly free pages together, the most that stitching could serve."""
    pending_bytes: int
    """Freed, but work of another stream may still use it."""
    fragmentation: float
    """The part of the free bytes that no single request could get, by its largest free block or by
    stitching: 0 to 1."""
    live_blocks: int
    peak_live_blocks: int
    allocations: int
    frees: int
    failures: int
    """Requests that found no memory."""
    stitched_requests: int
    stitched_pages: int
    alias_hits: int
    """Requests served by a stitched address that was still mapped."""
    mapping_calls: int
    """Calls that changed a page's backing or place."""
    cross_stream_waits: int
    overflow_allocations: int
    """Requests sent to PyTorch's own allocator (``overflow="native"``)."""
    overflow_bytes: int
    metadata_bytes: int
    """Host memory for the pool's own metadata."""
    size_classes: tuple[SizeClassStats, ...]
    """The size classes that were ever asked for, smallest first."""


@dataclass(frozen=True, kw_only=True)
class PoolBlock:
    """A block of a pool: live memory, or a free block between live ones."""

    address: int
    size_bytes: int
    """What the block occupies."""
    requested_bytes: int
    """What was asked for; 0 when free."""
    stream: int
    state: Literal["live", "free", "pending"]
    kind: Literal["large", "small", "stitched"]
    stack: tuple[str, ...]
    """Where it was allocated, innermost first; empty without ``record_stacks=True``."""


_STATES: dict[int, Literal["live", "free", "pending"]] = {
    BlockState.LIVE: "live",
    BlockState.FREE: "free",
    BlockState.PENDING: "pending",
}
_KINDS: dict[int, Literal["large", "small", "stitched"]] = {
    BlockKind.LARGE: "large",
    BlockKind.SMALL: "small",
    BlockKind.STITCHED: "stitched",
}


def make_stats(counters: dict[str, int], rows: list[SizeClass]) -> PoolStats:
    """The statistics from the core's counters."""
    free = counters["free_bytes"]
    most = max(counters["largest_free_bytes"], counters["largest_stitch_bytes"])
    return PoolStats(
        **counters,
        fragmentation=1 - most / free if free else 0.0,
        size_classes=tuple(
            SizeClassStats(
                upper_bytes=row.upper_bytes,
                live_blocks=row.live_blocks,
                live_bytes=row.live_bytes,
                allocations=row.allocations,
                frees=row.frees,
            )
            for row in rows
            if row.allocations
        ),
    )


def make_block(block: Block) -> PoolBlock:
    """A block as Python shows it."""
    return PoolBlock(
        address=block.address,
        size_bytes=block.size_bytes,
        requested_bytes=block.requested_bytes,
        stream=block.stream,
        state=_STATES[block.state],
        kind=_KINDS[block.kind],
        stack=frames(block.stack_id),
    )


_WIDTH = 75


def format_summary(stats: PoolStats, title: str, *, outside: Sequence[tuple[str, int]] = ()) -> str:
    """The statistics as a table of ``_WIDTH`` columns.

    Args:
        stats: The statistics.
        title: Stands above them.
        outside: What else is held on the device, by name, in bytes.
    """
    double, single = "|" + "=" * _WIDTH + "|", "|" + "-" * _WIDTH + "|"
    lines = [
        double,
        _centred(title),
        single,
        _centred(
            f"out of memory: {stats.failures:,}  |  overflowed to PyTorch: "
            f"{stats.overflow_allocations:,} ({format_mib(stats.overflow_bytes)})"
        ),
        double,
        _row("Memory", "Current", "Peak"),
        single,
        *_memory_rows(stats),
        single,
        _row("Count", "Current", "Total"),
        single,
        *_count_rows(stats),
        single,
        _row("Requests up to", "Live blocks", "Live memory", "Allocations"),
        single,
        *(
            _row(
                format_mib(row.upper_bytes),
                f"{row.live_blocks:,}",
                format_mib(row.live_bytes),
                f"{row.allocations:,}",
            )
            for row in stats.size_classes
        ),
        *_outside_rows(outside, single),
        double,
    ]
    return "\n".join(lines)


def _memory_rows(stats: PoolStats) -> list[str]:
    sizes: list[tuple[str, int, int | None]] = [
        ("Capacity", stats.capacity_bytes, None),
        ("Live", stats.live_bytes, stats.peak_live_bytes),
        ("Live with rounding", stats.allocated_bytes, stats.peak_allocated_bytes),
        ("Mapped", stats.mapped_bytes, stats.peak_mapped_bytes),
        ("Free", stats.free_bytes, None),
        ("Largest free block", stats.largest_free_bytes, None),
        ("Stitchable pages", stats.largest_stitch_bytes, None),
        ("Waiting for a stream", stats.pending_bytes, None),
        ("Pool metadata", stats.metadata_bytes, None),
    ]
    rows = [
        _row(name, format_mib(now), "" if peak is None else format_mib(peak))
        for name, now, peak in sizes
    ]
    return [*rows, _row("Fragmentation", f"{stats.fragmentation:.1%}", "")]


def _count_rows(stats: PoolStats) -> list[str]:
    return [
        _row("Blocks", f"{stats.live_blocks:,}", f"{stats.allocations:,}"),
        _row("Stitched requests", "", f"{stats.stitched_requests:,}"),
        _row("Stitched pages", "", f"{stats.stitched_pages:,}"),
        _row("Reused stitched addresses", "", f"{stats.alias_hits:,}"),
        _row("Mapping calls", "", f"{stats.mapping_calls:,}"),
        _row("Waits between streams", "", f"{stats.cross_stream_waits:,}"),
    ]


def _outside_rows(outside: Sequence[tuple[str, int]], line: str) -> list[str]:
    if not outside:
        return []
    rows = [_row(name, format_mib(size_bytes)) for name, size_bytes in outside]
    return [line, _row("Held on the device outside the pool", "Current"), line, *rows]


def _centred(text: str) -> str:
    return f"|{text:^{_WIDTH}}|"


def _row(name: str, *values: str) -> str:
    columns = "".join(f" | {value:>13}" for value in values)
    return f"| {name:<{_WIDTH - 1 - len(columns)}}{columns}|"
