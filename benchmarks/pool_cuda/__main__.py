"""CUDA loops inside vramkit.MemoryPool beside PyTorch's own allocators and RMM's pool.

Every measurement is a process of its own and is noted in a state file at once. A later run with
that file goes on where the last one stopped, so that the whole outlasts one stay on a GPU machine;
what is compared was measured in one run. Without a GPU, --report shows what a state file holds.
"""

import argparse
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks._shared.harness import Recorder, parser, say
from benchmarks._shared.provenance import ROOT, commit_label, gpu_provenance
from benchmarks.pool_cuda.loops import LOOPS
from benchmarks.pool_cuda.picture import draw
from benchmarks.pool_cuda.plan import (
    PARTS,
    pending,
)
from benchmarks.pool_cuda.report import doubts, rows
from benchmarks.pool_cuda.run import UNKNOWN_S, Budget, run
from benchmarks.pool_cuda.spec import (
    OTHERS,
    Choice,
)
from benchmarks.pool_cuda.state import State, continue_from
from benchmarks.pool_cuda.table import table

STATE = ROOT / "build" / "benchmarks" / "pool_cuda.jsonl"


def _names(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
    return chosen


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__ or "")
    add = options.add_argument
    add("--state", type=Path, default=STATE, help="file of the done measurements")
    add("--resume", type=Path, nargs="+", default=[], help="begin the state with earlier ones")
    add("--budget-s", type=float, default=math.inf, help="stop before this many seconds are over")
    add("--only", type=lambda text: _names(PARTS, text), default=PARTS, help=",".join(PARTS))
    add(
        "--loops",
        type=lambda text: _names(tuple(LOOPS), text),
        default=tuple(LOOPS),
        help=",".join(LOOPS),
    )
    add("--rounds", type=int, default=3, help="of native beside the pool; 3 unless told")
    add("--page-mib", type=int, help="page size, one a state file; else what the pool takes")
    add("--commit", help="of a tree without its repository; the one that --report is of")
    add("--plan", action="store_true", help="say what would be measured next, and end")
    add("--report", action="store_true", help="measure nothing: show what the state file holds")
    add("--retry", action="store_true", help="measure again what crashed")
    add("--table", type=Path, help="write the table to this file too")
    add("--picture", type=Path, help="draw memory against step time into this PNG file")
    return options


def _choice(chosen: argparse.Namespace) -> Choice:
    loops = []
    for name in chosen.loops:
        # A report is of another machine's results: it needs nothing of what they needed.
        if (missing := LOOPS[name].missing) and not chosen.report:
            say(f"skipped: {name} needs {missing}, which is not installed")
        else:
            loops.append(name)
    others: tuple[str, ...] = OTHERS
    if find_spec("rmm") is None and not chosen.report:
        say("skipped: rmm is not installed")
        others = tuple(name for name in OTHERS if name != "rmm")
    return Choice(
        tuple(loops),
        chosen.only,
        1 if chosen.quick else chosen.rounds,
        chosen.page_mib and chosen.page_mib << 20,
        others,
    )


def _show_plan(state: State, choice: Choice) -> None:
    total_s = 0.0
    for group in pending(state, choice):
        expected_s = sum(state.expected_s(each, UNKNOWN_S[each.spec.kind]) for each in group)
        total_s += expected_s
        say(f"{expected_s:6.0f} s  {', '.join(each.key for each in group)}")
    say(f"about {total_s:.0f} s at most; what needs these results comes after them")


def _measure(state: State, choice: Choice, budget: Budget, commit: str | None) -> None:
    try:
        origin = gpu_provenance(commit)
    except RuntimeError as err:
        say(f"skipped: {err}")
        return
    state.begin_run(origin)
    if run(state, choice, budget):
        say("all is measured")
        return
    left = len(pending(state, choice))
    say(f"the time is up, {left} groups are left; --resume with this state file goes on")


def _show(state: State, choice: Choice, chosen: argparse.Namespace) -> None:
    origin = state.latest_origin(chosen.commit)
    if origin is None:
        say(f"{chosen.state} holds nothing that was measured at commit {chosen.commit}")
        return
    text = table(state, choice)
    if chosen.table:
        chosen.table.write_text(text + "\n", encoding="utf-8")
    recorder = Recorder(record=chosen.record, allow_dirty=chosen.allow_dirty, origin=origin)
    for row in rows(state, choice):
        recorder.add(row)
    say(text)
    for doubt in doubts(state, choice):
        say(f"DOUBTFUL: {doubt}")
    if chosen.picture:
        draw(state, choice, chosen.picture)


def main() -> int:
    """Run the benchmark."""
    start = time.monotonic()
    chosen = _options().parse_args()
    continue_from(chosen.resume, chosen.state)
    # A report is of what was measured, whatever the tree has become since.
    commit = chosen.commit if chosen.report else chosen.commit or commit_label()
    state = State(chosen.state, commit=commit)
    if state.dropped:
        say(f"{state.dropped} measurements of the pool at other commits do not count")
    if chosen.retry:
        say(f"{state.forget_failures()} crashed measurements are made again")
    choice = _choice(chosen)
    if others := state.loop_pages() - {choice.page_bytes}:
        held = ", ".join(f"{each >> 20} MiB" if each else "the pool's own" for each in others)
        say(f"{chosen.state} holds loops in other pages ({held}): --page-mib must be the same")
        return 2
    if chosen.plan:
        _show_plan(state, choice)
        return 0
    if not chosen.report:
        _measure(state, choice, Budget(chosen.budget_s, start), chosen.commit)
    if state.origins:
        _show(state, choice, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
