"""Writes an estimate for people and for programs."""

from __future__ import annotations

import html
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vramkit.estimate._peak import Share
from vramkit.units import counted, format_mib

if TYPE_CHECKING:
    from vramkit.estimate._estimate import Estimate

_ROWS = 8
_NAMES = {
    "native": "reserved, PyTorch's allocator",
    "expandable": "reserved, expandable_segments",
    "pool": "smallest vramkit.MemoryPool",
}

Row = tuple[str, int, str]


def title(estimate: Estimate) -> str:
    """Return what was estimated, in a line."""
    number = estimate.parameters
    parameters = (
        f"{number / 1e6:,.1f} M parameters" if number >= 10**5 else counted(number, "parameter")
    )
    return f"{counted(estimate.steps, 'step')} on {estimate.target.title}, {parameters}"


def to_text(estimate: Estimate) -> str:
    """Return the table."""
    lines = [title(estimate), *_table(_totals(estimate))]
    for heading, rows in _sections(estimate):
        lines += ["", heading, *_table(rows)]
    notes = _notes(estimate)
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def to_html(estimate: Estimate) -> str:
    """Return the same as HTML."""
    parts = [f"<p><b>{html.escape(title(estimate))}</b></p>", _html_table(_totals(estimate))]
    for heading, rows in _sections(estimate):
        parts += [f"<p>{html.escape(heading)}</p>", _html_table(rows)]
    parts += [f"<p>{html.escape(note)}</p>" for note in _notes(estimate)]
    return f'<div class="vramkit-estimate">{"".join(parts)}</div>'


def to_dict(estimate: Estimate) -> dict[str, Any]:
    """Return all figures as plain containers."""
    peak = asdict(estimate.peak)
    for name in ("by_module", "by_operator"):
        peak[name] = peak[name][:50]
    return {
        "target": estimate.target.name,
        "steps": estimate.steps,
        "parameters": estimate.parameters,
        "peak_requested_bytes": estimate.peak_requested_bytes,
        "peak_allocated_bytes": estimate.peak_allocated_bytes,
        "reserved_bytes": dict(estimate.reserved_bytes),
        "device_bytes": estimate.device_bytes,
        "device_low_bytes": estimate.device_low_bytes,
        "device_high_bytes": estimate.device_high_bytes,
        "uncertain": list(estimate.uncertain),
        "peak": peak,
        "guesses": dict(estimate.guesses),
        "attention": dict(estimate.attention),
        "finite": dict(estimate.trace.finite),
        "assumptions": dict(estimate.trace.assumptions),
    }


def _totals(estimate: Estimate) -> list[Row]:
    low, high = format_mib(estimate.device_low_bytes), format_mib(estimate.device_high_bytes)
    reserved: list[Row] = [
        (_NAMES[name], size, "") for name, size in estimate.reserved_bytes.items()
    ]
    return [
        ("requested at the peak", estimate.peak_requested_bytes, ""),
        ("allocated at the peak", estimate.peak_allocated_bytes, ""),
        *reserved,
        ("used on the device", estimate.device_bytes, f"{low} to {high}"),
    ]


def _sections(estimate: Estimate) -> list[tuple[str, list[Row]]]:
    peak = estimate.peak
    where = f" at {peak.line}" if peak.line else ""
    kinds = [(kind, size, "") for kind, size in peak.by_kind.items()]
    heading = f"At the peak (step {peak.step}, {peak.phase}, {peak.operator}{where})"
    return [
        (heading, kinds),
        ("By module", _largest(peak.by_module)),
        ("By operator", _largest(peak.by_operator)),
    ]


def _largest(shares: tuple[Share, ...]) -> list[Row]:
    rows: list[Row] = [(share.name, share.size_bytes, share.line) for share in shares[:_ROWS]]
    rest = shares[_ROWS:]
    if rest:
        rows.append((f"({len(rest):,} others)", sum(share.size_bytes for share in rest), ""))
    return rows


def _notes(estimate: Estimate) -> list[str]:
    notes = list(estimate.uncertain)
    notes += [
        f"Guessed {counted(count, 'time')}: {where}" for where, count in estimate.guesses.items()
    ]
    notes += [
        f"Numbers are taken as finite where {where} asks, {counted(count, 'time')}."
        for where, count in estimate.trace.finite.items()
    ]
    notes += [
        f"Assumed {counted(count, 'time')}: {sentence}"
        for sentence, count in estimate.trace.assumptions.items()
    ]
    return notes


def _table(rows: list[Row]) -> list[str]:
    width = max((len(name) for name, _, _ in rows), default=0)
    lines = (
        f"  {name:<{width}}  {format_mib(size):>10}  {size:>18,}  {rest}".rstrip()
        for name, size, rest in rows
    )
    return list(lines)


def _html_table(rows: list[Row]) -> str:
    cells = "".join(
        f'<tr><td>{html.escape(name)}</td><td style="text-align:right">{format_mib(size)}</td>'
        f'<td style="text-align:right">{size:,}</td><td>{html.escape(rest)}</td></tr>'
        for name, size, rest in rows
    )
    return f"<table>{cells}</table>"
