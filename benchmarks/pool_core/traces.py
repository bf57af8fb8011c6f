"""Turns recorded traces into the driver's event files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._shared.provenance import ROOT

TRACES = ROOT / "benchmarks" / "traces"
PAGE_BYTES = 2 << 20
_EVENT = np.dtype([("size_bytes", "<u8"), ("block", "<u4"), ("stream", "<u2"), ("is_free", "<u2")])


@dataclass(frozen=True)
class EventFile:
    """The events of one trace as the driver reads them."""

    name: str
    path: Path
    events: int
    peak_live_bytes: int
    capacity_bytes: int


def write_event_file(trace: Path, folder: Path, *, capacity: str) -> EventFile:
    """Write the events of ``trace`` to a file in ``folder``; ``capacity`` as for simulate."""
    from vramkit.simulate import load_trace, parse_capacity

    events = load_trace(trace)
    rows = np.empty(len(events), dtype=_EVENT)
    rows["size_bytes"], rows["block"] = events.size_bytes, events.block_id
    rows["stream"], rows["is_free"] = events.stream, events.op
    path = folder / f"{trace.stem}.events"
    rows.tofile(path)
    peak = events.peak_live_bytes
    capacity_bytes = parse_capacity(capacity, peak_live_bytes=peak, page_bytes=PAGE_BYTES)
    return EventFile(trace.stem, path, len(events), peak, capacity_bytes)
