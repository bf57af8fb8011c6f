"""A simulation's outcome for people and for programs."""

from dataclasses import asdict
from typing import Any

from vramkit.simulate._replay import Failure, Replay
from vramkit.simulate._simulation import Simulation
from vramkit.simulate._text import one_line
from vramkit.units import counted, format_apart, format_mib

# Mapping a page at a second address and giving the device access to it, measured on an H100.
STITCH_US_PER_PAGE = 42.5


def estimated_stitch_ms(replay: Replay) -> float:
    """Time that mapping the stitched pages would take on an H100, in milliseconds."""
    return replay.stitched_pages * STITCH_US_PER_PAGE / 1000


def to_json(simulation: Simulation) -> dict[str, Any]:
    """The report as a JSON object."""
    replay = simulation.replay
    report: dict[str, Any] = {
        "completed": simulation.completed,
        "events": replay.events,
        "peak_live_bytes": simulation.peak_live_bytes,
        "capacity_bytes": replay.capacity_bytes,
        "ratio": simulation.ratio,
        "stitched_requests": replay.stitched_requests,
        "stitched_pages": replay.stitched_pages,
        "cross_stream_waits": replay.cross_stream_waits,
        "estimated_stitch_ms": estimated_stitch_ms(replay),
        "seconds": replay.seconds,
        "failure": None,
        "private_pools": {
            "blocks": simulation.private_blocks,
            "peak_live_bytes": simulation.private_peak_bytes,
        },
        "warnings": list(simulation.notes),
    }
    if replay.failure is not None:
        message = failure_text(replay.failure, replay)
        report["failure"] = {**asdict(replay.failure), "message": message}
    if simulation.repetition is not None:
        step = simulation.repetition.step
        report["step"] = {"first_event": step.start, "end_event": step.stop}
        report["rounds"] = [asdict(counters) for counters in replay.rounds]
    return report


def to_text(simulation: Simulation, *, title: str) -> str:
    """The report as a short table, with an explanation if the pool ran out."""
    replay = simulation.replay
    rows = [("trace", one_line(title)), *_rows(simulation), *_step_rows(simulation)]
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{value}" for name, value in rows]
    for note in simulation.notes:
        lines += ["", f"Warning: {note}."]
    if replay.rounds:
        lines += ["", *_round_lines(replay)]
    if replay.failure is not None:
        lines += ["", failure_text(replay.failure, replay)]
    return "\n".join(lines)


def failure_text(failure: Failure, replay: Replay) -> str:
    """Which request could not be served, why, and what to do."""
    where = f"event {failure.event:,} of the trace" if failure.event >= 0 else "an added event"
    if failure.round is not None:
        where += f" (round {failure.round})" if failure.round else " (before the first round)"
    pages_bytes = failure.free_whole_pages * replay.page_bytes
    free, hole, joined = (
        format_apart(size, failure.requested_bytes)[0]
        for size in (failure.free_bytes, failure.largest_hole_bytes, pages_bytes)
    )
    requested, _ = format_apart(failure.requested_bytes, failure.free_bytes)
    pages = counted(failure.free_whole_pages, "wholly free page")
    return (
        f"The pool ran out at {where}, after {counted(failure.replayed_events, 'event')}: "
        f"a request of {requested} on stream {failure.stream} did not fit. Of "
        f"{format_mib(replay.capacity_bytes)}, {format_mib(failure.live_bytes)} were live and "
        f"{free} free; the largest free block had {hole}, and stitching could have joined "
        f"{pages} ({joined}). "
        "Give a larger --capacity, or let --min-capacity find the smallest that completes."
    )


def _rows(simulation: Simulation) -> list[tuple[str, str]]:
    replay = simulation.replay
    pages = counted(replay.capacity_bytes // replay.page_bytes, "page")
    stitch_ms = f"about {estimated_stitch_ms(replay):,.1f} ms on an H100"
    rows = [
        ("result", "completed" if simulation.completed else "OUT OF MEMORY"),
        ("events", f"{replay.events:,}"),
        ("peak live", format_mib(simulation.peak_live_bytes)),
        (
            "capacity",
            f"{format_mib(replay.capacity_bytes)} ({pages} of {format_mib(replay.page_bytes)})",
        ),
        ("ratio", f"{simulation.ratio:.4f} (capacity / peak live)"),
        ("stitched requests", f"{replay.stitched_requests:,}"),
        ("stitched pages", f"{replay.stitched_pages:,} ({stitch_ms})"),
        ("cross-stream waits", f"{replay.cross_stream_waits:,}"),
        ("speed", f"{_events_per_second(replay)} ({replay.seconds:.3f} s)"),
    ]
    if simulation.standing_blocks:
        note = "live before the recording began, placed first"
        rows.insert(2, ("older blocks", f"{simulation.standing_blocks:,} {note}"))
    if simulation.private_blocks:
        peak = format_mib(simulation.private_peak_bytes)
        note = f"peak {peak}, not replayed: a pool does not serve them"
        rows.append(("private pools", f"{simulation.private_blocks:,} blocks, {note}"))
    return rows


def _events_per_second(replay: Replay) -> str:
    if not replay.seconds:
        return "too short to measure"
    return f"{replay.events / replay.seconds / 1e6:,.1f} M events/s"


def _step_rows(simulation: Simulation) -> list[tuple[str, str]]:
    if simulation.repetition is None:
        return []
    step, starts = simulation.repetition.step, simulation.repetition.round_starts
    return [
        (
            "repeated step",
            f"events {step.start:,} to {step.stop - 1:,}, {counted(len(starts), 'time')}",
        )
    ]


def _round_lines(replay: Replay) -> list[str]:
    lines = ["round  mapping calls  stitched requests  stitched pages  reused stitches"]
    for number, counters in enumerate(replay.rounds, start=1):
        lines.append(
            f"{number:>5}  {counters.mapping_calls:>13,}  {counters.stitched_requests:>17,}  "
            f"{counters.stitched_pages:>14,}  {counters.alias_hits:>15,}"
        )
    return lines
