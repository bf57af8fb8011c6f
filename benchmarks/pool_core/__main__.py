"""The pool core beside malloc, jemalloc, tcmalloc and mimalloc: no memory is touched.

Random replacement at a fixed number of live blocks (sizes log-uniform from 512 B to 1 MiB), and
the replay of the recorded traces. Every turn of every allocator is a fresh process.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks._shared.harness import Recorder, Row, Setting, interleave, parser, say, summarize
from benchmarks._shared.peers import GLIBC, Peer, preloaded_peers
from benchmarks._shared.provenance import measure_this_tree
from benchmarks.pool_core.native_driver import CORE_LIBRARY, Outcome, build, run
from benchmarks.pool_core.traces import TRACES, EventFile, write_event_file

BENCH = "bench_pool_core"
LIVE_BLOCKS = (100, 1_000, 10_000, 100_000, 1_000_000)
PAIRS_A_BATCH = 1_000
SEED = 1
OWN = "vramkit"
LOOP = "bare loop"  # printed, so that the cost of measuring is known; never recorded
REPLAY_CAPACITY = "1.01x"

Contestants = Mapping[str, Callable[[], Outcome]]


@dataclass(frozen=True)
class Plan:
    """What the command line asked for."""

    recorder: Recorder
    peers: list[Peer]
    with_pool: bool
    quick: bool


def contestants(plan: Plan, mode: str, arguments: list[object]) -> Contestants:
    """Name everyone who takes a turn at one case: the bare loop, the peers, the pool."""
    turns = {LOOP: partial(run, mode, "loop", "-", arguments, GLIBC)}
    for peer in plan.peers:
        turns[peer.name] = partial(run, mode, "malloc", peer.mapped_as, arguments, peer)
    if plan.with_pool:
        turns[OWN] = partial(run, mode, "pool", str(CORE_LIBRARY), arguments, GLIBC)
    return turns


def report(
    recorder: Recorder,
    case: str,
    metric: tuple[str, str],
    turns: Mapping[str, list[Outcome]],
    settings: Mapping[str, Setting],
) -> None:
    """Add one row a peer; print the bare loop, and without the pool the peers too."""
    summaries = {
        name: summarize([sample for outcome in outcomes for sample in outcome.samples])
        for name, outcomes in turns.items()
    }
    own = summaries.pop(OWN, None)
    for name, summary in summaries.items():
        if own is None or name == LOOP:
            say(f"{case:28} {name:16} {summary.median:12,.5g} {metric[1]}")
        else:
            recorder.add(Row(BENCH, case, *metric, own, settings, name, summary))


def bench_pairs(plan: Plan) -> None:
    """Time an allocate+free pair at every number of live blocks."""
    own_medians: dict[int, float] = {}
    for live in LIVE_BLOCKS[:3] if plan.quick else LIVE_BLOCKS:
        batches = 100 if live == LIVE_BLOCKS[-1] else 400
        rounds = 1 if plan.quick else 3
        arguments: list[object] = [live, batches, PAIRS_A_BATCH, SEED]
        turns = interleave(contestants(plan, "pairs", arguments), rounds=rounds)
        settings: dict[str, Setting] = {
            "live_blocks": live,
            "sizes": "log-uniform 512 B to 1 MiB",
            "pairs_a_batch": PAIRS_A_BATCH,
            "processes": rounds,
            "seed": SEED,
            "backend": "null",
        }
        report(plan.recorder, f"pairs_{live}_live", ("pair_ns", "ns"), turns, settings)
        if OWN in turns:
            samples = [sample for outcome in turns[OWN] for sample in outcome.samples]
            own_medians[live] = summarize(samples).median
    if len(own_medians) > 1:
        (few, least), (many, most) = min(own_medians.items()), max(own_medians.items())
        say(f"a pair costs {most / least:.2f} times as much at {many:,} live blocks as at {few:,}")


def bench_replay(plan: Plan, events: EventFile) -> None:
    """Time the replay of one trace, and weigh the pool's books against its capacity."""
    rounds = 1 if plan.quick else 5
    replays = 3
    arguments: list[object] = [events.path, replays, events.capacity_bytes]
    turns = interleave(contestants(plan, "replay", arguments), rounds=rounds)
    settings: dict[str, Setting] = {
        "events": events.events,
        "peak_live_bytes": events.peak_live_bytes,
        "capacity_bytes": events.capacity_bytes,
        "replays_a_process": replays,
        "processes": rounds,
        "backend": "null",
    }
    case = f"replay_{events.name}"
    report(plan.recorder, case, ("replay_rate", "events/s"), turns, settings)
    for outcome in turns.get(OWN, [])[:1]:
        counts: dict[str, Setting] = {
            "metadata_bytes": outcome.metadata_bytes,
            "stitched_requests": outcome.stitched_requests,
            "mapping_calls": outcome.mapping_calls,
        }
        share = summarize([100 * outcome.metadata_bytes / outcome.capacity_bytes])
        plan.recorder.add(Row(BENCH, case, "metadata_of_capacity", "%", share, settings | counts))


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    options.add_argument("--only", choices=("pairs", "replay"), help="one half of the benchmark")
    options.add_argument("--peers-only", action="store_true", help="leave the pool out")
    options.add_argument("--traces", type=Path, default=TRACES, help="folder of .npz traces")
    chosen = options.parse_args()
    recorder = Recorder(record=chosen.record, allow_dirty=chosen.allow_dirty)
    measure_this_tree()
    build()
    installed, missing = preloaded_peers()
    for name in missing:
        say(f"skipped: {name} is not installed")
    if not CORE_LIBRARY.exists():
        say(f"skipped: {OWN} is not built ({CORE_LIBRARY.name}); run `make build`")
    with_pool = CORE_LIBRARY.exists() and not chosen.peers_only
    plan = Plan(recorder, [GLIBC, *installed], with_pool, chosen.quick)
    if chosen.only != "replay":
        bench_pairs(plan)
    if chosen.only != "pairs":
        with tempfile.TemporaryDirectory() as folder:
            for trace in sorted(chosen.traces.glob("*.npz")):
                events = write_event_file(trace, Path(folder), capacity=REPLAY_CAPACITY)
                bench_replay(plan, events)
    return 0


if __name__ == "__main__":
    sys.exit(main())
