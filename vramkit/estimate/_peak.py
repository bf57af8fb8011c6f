"""What is live at the peak, by kind, module and operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vramkit.estimate._recorder import Block, Kind, Trace


@dataclass(frozen=True)
class Share:
    """What a module or an operator holds at the peak.

    Attributes:
        name: The module or the operator.
        size_bytes: Its blocks' requested bytes.
        blocks: Number of its blocks.
        line: The line of Python that made the most of it, as ``file:number``.
    """

    name: str
    size_bytes: int
    blocks: int
    line: str


@dataclass(frozen=True)
class Peak:
    """The moment at which most bytes are live.

    Attributes:
        size_bytes: Requested bytes.
        step: Number of the step from 1; 0 while the model is built.
        phase: What the program does: build, forward, backward or optimizer.
        operator: The operator that reaches the peak.
        line: Its line of Python.
        by_kind: Bytes by what they hold, the most first.
        by_module: The same by module.
        by_operator: The same by operator.
    """

    size_bytes: int
    step: int
    phase: str
    operator: str
    line: str
    by_kind: dict[str, int]
    by_module: tuple[Share, ...]
    by_operator: tuple[Share, ...]


def find_peak(trace: Trace) -> Peak:
    """Find the first moment of most live bytes and say what is live then."""
    live = trace.events().live_bytes
    if not len(live):
        return Peak(0, 0, "build", "", "", {}, (), ())
    at = int(np.argmax(live))
    reached = trace.blocks[trace.changes[at]]
    blocks = [trace.blocks[number] for number in trace.live_at(at)]
    kinds: dict[str, int] = defaultdict(int)
    for block in blocks:
        kinds[block.kind.value] += block.size_bytes
    return Peak(
        size_bytes=int(live[at]),
        step=reached.step + 1,
        phase=reached.phase.value,
        operator=reached.operator,
        line=short_line(reached.line),
        by_kind=dict(sorted(kinds.items(), key=lambda item: -item[1])),
        by_module=_shares(blocks, lambda block: block.module or "(outside modules)"),
        by_operator=_shares(blocks, lambda block: block.operator),
    )


def live_by_kind(trace: Trace) -> dict[Kind, NDArray[np.int64]]:
    """Return the live bytes of each kind after each event."""
    changes = np.array(trace.changes, dtype=np.int64)
    identity = np.where(changes < 0, ~changes, changes)
    sizes = np.array([block.size_bytes for block in trace.blocks], dtype=np.int64)
    kinds = np.array([list(Kind).index(block.kind) for block in trace.blocks], dtype=np.int64)
    signed = np.where(changes < 0, -1, 1) * (sizes[identity] if len(identity) else identity)
    return {
        kind: np.cumsum(np.where(kinds[identity] == number, signed, 0))
        for number, kind in enumerate(Kind)
        if len(kinds) and (kinds == number).any()
    }


def short_line(line: str) -> str:
    """Return a line with the last two parts of its path.

    >>> short_line("/home/me/project/train.py:12")
    'project/train.py:12'
    """
    return "/".join(Path(line).parts[-2:]) if line else ""


def _shares(blocks: Iterable[Block], name_of: Callable[[Block], str]) -> tuple[Share, ...]:
    grouped: dict[str, list[Block]] = defaultdict(list)
    for block in blocks:
        grouped[name_of(block)].append(block)
    found = []
    for name, members in grouped.items():
        lines: dict[str, int] = defaultdict(int)
        for block in members:
            lines[block.line] += block.size_bytes
        total = sum(lines.values())
        line = max(lines, key=lines.__getitem__)
        found.append(Share(name, total, len(members), short_line(line)))
    return tuple(sorted(found, key=lambda share: -share.size_bytes))
