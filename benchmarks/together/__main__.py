"""One recommender with PyTorch's parts and with vramkit's four drop-ins.

How many samples a second do they train on, how much of the GPU do they take, and what is the
largest batch or table that fits in a limit?
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks._shared.harness import (
    Recorder,
    Row,
    Setting,
    Summary,
    interleave,
    parser,
    say,
    summarize,
)
from benchmarks._shared.provenance import gpu_provenance, measure_this_tree
from benchmarks.together.child import Child
from benchmarks.together.search import largest
from benchmarks.together.worker import Spec

BENCH = "bench_together"
CASE = "recommender"
PEER = "PyTorch"
GIB = 1 << 30
TIMEOUT_S = 90.0
LIMIT_BYTES = 40 * GIB
# The pool of the timed turns, in which all contestants are on the GPU at once.
CONTEST_POOL_BYTES = 24 * GIB
# More than PyTorch's workers fetch ahead: 8 of them, 2 batches each.
UNTIMED = 20
ON_GPU = Spec(False, "cuda", 8192, 2_000_000, 500_000, 64, 8, False, CONTEST_POOL_BYTES)
ON_CPU = Spec(False, "cpu", 64, 2000, 2000, 8, 0, False, GIB)
CONTESTANTS = {
    PEER: {"stock": True, "limit_bytes": 0},
    "vramkit": {},
    "vramkit, bfloat16 rows": {"bfloat16": True},
}
# What a step in a small pool needs above its peak: docs/cuda.md, section Limits.
ROOM = 1.03
LARGER = 10

Figures = dict[str, Any]


@contextlib.contextmanager
def started(specs: Mapping[str, Spec]) -> Iterator[dict[str, Child]]:
    """Start a child for each spec, all at once, and end them."""
    with contextlib.ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(spec, TIMEOUT_S)) for name, spec in specs.items()
        }
        for child in children.values():
            child.wait_ready()
        yield children


def contest(base: Spec, rounds: int) -> dict[str, list[Figures]]:
    """Let all contestants train by turns; the first turn warms up, and is returned too."""
    specs = {name: replace(base, **change) for name, change in CONTESTANTS.items()}
    with started(specs) as children:
        turns = interleave(
            {name: child.turn for name, child in children.items()}, rounds=rounds + 1
        )
    for name, figures in turns.items():
        if failed := [each for each in figures if not each["ok"]]:
            raise RuntimeError(f"{name} ran out of memory: {failed[0]['out_of_memory']}")
    return turns


def once(spec: Spec) -> Figures:
    """Train in a process of its own."""
    with started({"": spec}) as children:
        return children[""].turn()


@dataclass(frozen=True)
class Report:
    """Rows of the contestants beside PyTorch."""

    recorder: Recorder
    settings: Mapping[str, Setting]

    def add(
        self,
        metric: str,
        unit: str,
        own: Summary,
        theirs: Summary | None,
        more: Mapping[str, Setting],
    ) -> None:
        """Record a figure."""
        peer = None if theirs is None else PEER
        settings = {**self.settings, **more}
        self.recorder.add(Row(BENCH, CASE, metric, unit, own, settings, peer, theirs))


def rates(turns: list[Figures]) -> Summary:
    """Summarize the timed turns."""
    return summarize([turn["samples_per_s"] for turn in turns[1:]])


def gib(size_bytes: float) -> Summary:
    """Put one number of bytes into a row."""
    return summarize([size_bytes / GIB])


def report_contest(report: Report, base: Spec, turns: dict[str, list[Figures]]) -> None:
    """Record speed and peaks; run each pool again with little more than its peak."""
    theirs = turns[PEER]
    for name in [name for name in turns if name != PEER]:
        own = turns[name]
        more: dict[str, Setting] = {"contestant": name, "rows_in_use": own[-1]["rows_in_use"]}
        more |= {"loss": own[-1]["loss"], "peer_loss": theirs[-1]["loss"]}
        report.add("samples_per_s", "samples/s", rates(own), rates(theirs), more)
        if base.device == "cpu":
            continue
        peak = own[-1]["peak_bytes"]
        report.add("peak", "GiB", gib(peak), gib(theirs[-1]["peak_bytes"]), more)
        steps = len(own) * (base.steps + base.untimed)
        spec = replace(base, **CONTESTANTS[name], limit_bytes=int(peak * ROOM))
        alone = once(replace(spec, untimed=0, steps=steps))
        if not alone["ok"]:
            say(f"{name} does not run in a pool of {ROOM} times its peak: {alone}")
            continue
        more |= {"pool_of_peak": ROOM, "steps": steps}
        # The first turn: nobody else had memory then. Caches only grow, so later is not less.
        taken = max(theirs[0]["device_bytes"], theirs[-1]["reserved_bytes"])
        report.add("device", "GiB", gib(alone["device_bytes"]), gib(taken), more)


@dataclass(frozen=True)
class Attempts:
    """Tries whether a batch or tables of a size fit."""

    base: Spec
    field: str
    rows_in_use: dict[int, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def __call__(self, number: int) -> bool:
        """Try a size. What fails for another reason than memory does not fit, and is named."""
        spec = replace(self.base, **{self.field: number})
        side = PEER if spec.stock else "vramkit"
        try:
            figures = once(replace(spec, samples=max(2 * spec.batch, 2 * ON_GPU.batch)))
        except (RuntimeError, TimeoutError) as err:
            figures = {"ok": False}
            self.complaints.append(f"{number}: {str(err)[-200:]}")
            say(f"{side}: {self.field}={number} failed: {err}")
        if figures["ok"]:
            self.rows_in_use[number] = figures["rows_in_use"]
        say(f"{side}: {self.field}={number:,} {'fits' if figures['ok'] else 'does not fit'}")
        return bool(figures["ok"])


def guesses(base: Spec, turns: dict[str, list[Figures]]) -> dict[str, int]:
    """Work out where to begin the searches, from the peaks of the contest."""
    theirs, own = turns[PEER][-1], turns["vramkit"][-1]
    result = {}
    for name, figures in (("stock_batch", theirs), ("own_batch", own)):
        for_a_sample = (figures["peak_bytes"] - figures["table_bytes"]) / base.batch
        result[name] = int((LIMIT_BYTES - figures["table_bytes"]) / for_a_sample)
    for_steps = theirs["peak_bytes"] - theirs["table_bytes"]
    for_a_row = theirs["table_bytes"] / base.rows  # of all tables, for each of `rows`
    result["stock_table"] = int((LIMIT_BYTES - for_steps) / for_a_row)
    return result


def search_all(report: Report, base: Spec, turns: dict[str, list[Figures]]) -> None:
    """Search for the largest batch and the largest tables within the limit, several at a time."""
    start = guesses(base, turns)
    trial = replace(base, limit_bytes=LIMIT_BYTES, workers=0, untimed=0, steps=4, rest_s=0.0)
    stock = replace(trial, stock=True)
    full = replace(trial, bfloat16=True, fill=True)
    plan = {
        "stock_batch": (Attempts(stock, "batch"), start["stock_batch"], 3),
        "own_batch": (Attempts(trial, "batch"), start["own_batch"], 3),
        "stock_table": (Attempts(stock, "rows"), start["stock_table"], 3),
        # Tables hold the rows in use only: far more is tried once.
        "own_table": (Attempts(trial, "rows"), LARGER * start["stock_table"], 1),
        "full_table": (Attempts(full, "rows"), start["stock_table"], 3),
    }
    free_bytes = torch.cuda.mem_get_info()[0]
    at_once = max(1, min(3, free_bytes // (LIMIT_BYTES + 2 * GIB)))
    with ThreadPoolExecutor(at_once) as threads:
        searches = {
            name: threads.submit(largest, attempts, guess, most_tries=most)
            for name, (attempts, guess, most) in plan.items()
        }
        found = {name: search.result() for name, search in searches.items()}
    for metric, own, theirs, unit in (
        ("largest_batch", "own_batch", "stock_batch", "samples"),
        ("largest_table", "own_table", "stock_table", "rows"),
        ("largest_table_all_rows", "full_table", "stock_table", "rows"),
    ):
        report_search(
            report, metric, unit, (plan[own][0], *found[own]), (plan[theirs][0], *found[theirs])
        )


Found = tuple[Attempts, int | None, int | None]


def report_search(report: Report, metric: str, unit: str, own: Found, theirs: Found) -> None:
    """Record the largest sizes that fitted, and the smallest that did not."""
    if own[1] is None or theirs[1] is None:
        say(f"{metric}: nothing that was tried fits: {own}, {theirs}")
        return
    attempts = own[0]
    more: dict[str, Setting] = {
        "limit_gib": LIMIT_BYTES // GIB,
        "steps": attempts.base.steps,
        "bfloat16": attempts.base.bfloat16,
        "rows_in_use": attempts.rows_in_use[own[1]],
        "does_not_fit": own[2],
        "peer_does_not_fit": theirs[2],
        "complaints": "; ".join(attempts.complaints + theirs[0].complaints),
    }
    report.add(metric, unit, summarize([own[1]]), summarize([theirs[1]]), more)


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    options.add_argument("--device", choices=("cpu", "cuda"), default=default)
    options.add_argument("--commit", help="label of the commit, where there is no repository")
    chosen = options.parse_args()
    measure_this_tree()
    on_gpu = chosen.device == "cuda"
    origin = gpu_provenance(chosen.commit) if on_gpu else None
    recorder = Recorder(record=chosen.record, allow_dirty=chosen.allow_dirty, origin=origin)
    if on_gpu:
        base, rounds = replace(ON_GPU, untimed=UNTIMED, steps=30, rest_s=1.0), 4
    else:
        base, rounds = replace(ON_CPU, untimed=2, steps=8), 3
    settings = {name: getattr(base, name) for name in ("batch", "rows", "samples", "side")}
    report = Report(recorder, settings | {"workers": base.workers})
    turns = contest(base, 1 if chosen.quick else rounds)
    report_contest(report, base, turns)
    if on_gpu and not chosen.quick:
        search_all(report, base, turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
