"""Measures contestants side by side and writes the results down.

A benchmark is a set of contestants that each do the same work. They take turns (``interleave``),
so that whatever the machine does meanwhile hits all of them alike; what counts is the ratio to a
peer of the same run. A ``Recorder`` prints rows, and appends them to ``benchmarks/results`` when
asked to.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks._shared.provenance import ROOT, Provenance, provenance

RESULTS = ROOT / "benchmarks" / "results"
Setting = str | int | float | bool | None
Turn = TypeVar("Turn")


@dataclass(frozen=True)
class Summary:
    """The median of many samples with the 20th and 80th percentiles, in the samples' unit."""

    median: float
    p20: float
    p80: float
    repeats: int


def summarize(samples: Sequence[float]) -> Summary:
    """Condense samples into a Summary.

    Raises:
        ValueError: ``samples`` is empty.
    """
    if not samples:
        raise ValueError("there is nothing to summarize: the contestant returned no samples")
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0], 1)
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Summary(statistics.median(samples), fifths[0], fifths[3], len(samples))


def interleave(
    contestants: Mapping[str, Callable[[], Turn]], *, rounds: int, warm_up: int = 0
) -> dict[str, list[Turn]]:
    """Let every contestant take one turn a round; each round starts with another contestant.

    The turns of the first ``warm_up`` rounds are thrown away.
    """
    names = list(contestants)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            turn = contestants[name]()
            if number >= warm_up:
                turns[name].append(turn)
    return turns


@dataclass(frozen=True)
class Row:
    """One figure, beside the same figure of one peer in the same run (or alone)."""

    bench: str
    case: str
    metric: str
    unit: str
    own: Summary
    settings: Mapping[str, Setting]
    peer: str | None = None
    theirs: Summary | None = None

    @property
    def ratio(self) -> float | None:
        """Own value divided by the peer's, whether more or less is better."""
        if self.theirs is None or self.theirs.median == 0:
            return None
        return self.own.median / self.theirs.median


class Recorder:
    """Prints rows; with ``record`` it also appends them to the results file of this commit."""

    def __init__(
        self, *, record: bool, allow_dirty: bool, origin: Provenance | None = None
    ) -> None:
        """Find out where the rows come from: from here, unless ``origin`` says otherwise.

        Raises:
            RuntimeError: recording was asked for from a tree with uncommitted changes.
        """
        self._origin = origin or provenance()
        self._record = record
        if record and self._origin.dirty and not allow_dirty:
            raise RuntimeError(
                f"the tree differs from commit {self._origin.commit}, so a recorded row could not "
                "be traced to its code; commit first, or pass --allow-dirty to mark the rows"
            )

    def add(self, row: Row) -> None:
        """Print a row, and append it to the results file when recording."""
        say(describe(row))
        if not self._record:
            return
        RESULTS.mkdir(exist_ok=True)
        origin = self._origin
        name = f"{origin.date[:10]}-{origin.device_slug}-{origin.label}.jsonl"
        with (RESULTS / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(as_json(row, origin)) + "\n")


def as_json(row: Row, origin: Provenance) -> dict[str, object]:
    """Turn a row into the object of one result line."""
    theirs = row.theirs
    return {
        "bench": row.bench,
        "case": row.case,
        "metric": row.metric,
        "value": significant(row.own.median),
        "unit": row.unit,
        "peer": row.peer,
        "peer_value": None if theirs is None else significant(theirs.median),
        "ratio": None if row.ratio is None else significant(row.ratio),
        "repeats": row.own.repeats,
        "p20": significant(row.own.p20),
        "p80": significant(row.own.p80),
        "peer_p20": None if theirs is None else significant(theirs.p20),
        "peer_p80": None if theirs is None else significant(theirs.p80),
        "device": origin.device,
        "torch": origin.torch,
        "cuda": origin.cuda,
        "driver": origin.driver,
        "commit": origin.label,
        "date": origin.date,
        "settings": dict(row.settings) | {"kernel": origin.kernel, "python": origin.python},
    }


def describe(row: Row) -> str:
    """Put a row into one line for people."""
    line = f"{row.case:28} {row.metric:22} {row.own.median:12,.5g} {row.unit:9}"
    if row.theirs is None:
        return line + f" [{row.own.p20:,.4g} .. {row.own.p80:,.4g}]"
    ratio = "" if row.ratio is None else f"  ratio {row.ratio:6.3f}"
    return line + f" {row.peer:16} {row.theirs.median:12,.5g}{ratio}"


def significant(value: float) -> float:
    """Round to six significant digits, so that the file shows no more than was measured."""
    return float(f"{value:.6g}")


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def parser(description: str) -> argparse.ArgumentParser:
    """Make the command line that every benchmark shares."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--record", action="store_true", help="append the rows to results/")
    result.add_argument("--allow-dirty", action="store_true", help="record with a dirty tree")
    result.add_argument("--quick", action="store_true", help="few repeats: a look, not a result")
    return result
