"""CPU training loops inside vramkit.MemoryPool, beside PyTorch's default and preloaded mallocs.

Every allocator has a process of its own that stays alive; they take turns, one at a time.
"""

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

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
from benchmarks._shared.peers import GLIBC, Peer, preloaded_peers
from benchmarks._shared.provenance import ROOT
from benchmarks.pool_core.native_driver import CORE_LIBRARY
from benchmarks.pool_cpu.loops import LOOPS

BENCH = "bench_pool_cpu"
OWN = "vramkit"
DEFAULT = replace(GLIBC, name="default")
EQUAL = 1.03
METRICS = {"step": "ms", "minor_faults_a_step": "faults", "peak_rss": "MiB"}


@dataclass(frozen=True)
class Turn:
    """What one process did in one turn."""

    ms: Sequence[float]
    faults: float
    peak_rss_kib: int
    loss: float


class Worker:
    """A child process that runs steps of one loop under one allocator."""

    def __init__(self, loop: str, peer: Peer, capacity: str) -> None:
        """Start the process and wait until its loop is made."""
        self._name = peer.name if capacity == "-" else OWN
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pool_cpu.worker", loop, peer.mapped_as, capacity],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=peer.environment(),
        )
        self.threads = int(str(self._read()["threads"]))

    def _read(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            status = self._process.returncode
            raise RuntimeError(f"the process of {self._name} ended early with status {status}")
        message: dict[str, object] = json.loads(line)
        return message

    def take_turn(self, lead_in: int, steps: int) -> Turn:
        """Run one turn and wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{lead_in} {steps}\n")
        self._process.stdin.flush()
        return Turn(**self._read())  # type: ignore[arg-type]

    def close(self) -> None:
        """End the process by ending its input."""
        self._process.communicate()


@contextlib.contextmanager
def workers(loop: str, peers: list[Peer], capacity: str) -> Iterator[dict[str, Worker]]:
    """Keep one process an allocator for the length of the scope; capacity "-": peers only."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Worker] = {}
        for peer in peers:
            started[peer.name] = Worker(loop, peer, "-")
            stack.callback(started[peer.name].close)
        if capacity != "-":
            started[OWN] = Worker(loop, GLIBC, capacity)
            stack.callback(started[OWN].close)
        yield started


def check_same_work(turns: Mapping[str, list[Turn]]) -> None:
    """Make sure that all allocators saw the same training.

    Raises:
        RuntimeError: two losses after the same number of steps differ.
    """
    losses = {name: taken[-1].loss for name, taken in turns.items()}
    first, *others = losses.values()
    # A preloaded malloc may align tensors otherwise, and sums then round otherwise.
    if not all(math.isclose(first, other, rel_tol=1e-3) for other in others):
        raise RuntimeError(f"the allocators trained to different losses: {losses}")


def summaries(taken: list[Turn]) -> dict[str, Summary]:
    """Condense the turns of one allocator, one summary a metric."""
    return {
        "step": summarize([ms for turn in taken for ms in turn.ms]),
        "minor_faults_a_step": summarize([turn.faults for turn in taken]),
        "peak_rss": summarize([taken[-1].peak_rss_kib / 1024]),
    }


def report(
    recorder: Recorder,
    loop: str,
    turns: Mapping[str, list[Turn]],
    settings: Mapping[str, Setting],
) -> None:
    """Add a row for each metric and peer; without the pool, print what the peers did."""
    measured = {allocator: summaries(taken) for allocator, taken in turns.items()}
    own = measured.pop(OWN, None)
    if own is None:
        for allocator, figures in measured.items():
            for metric, unit in METRICS.items():
                say(f"{loop:14} {allocator:10} {metric:20} {figures[metric].median:12,.5g} {unit}")
        return
    for metric, unit in METRICS.items():
        for allocator, figures in measured.items():
            recorder.add(
                Row(BENCH, loop, metric, unit, own[metric], settings, allocator, figures[metric])
            )
    steps = {allocator: figures["step"].median for allocator, figures in measured.items()}
    rival = rival_of(loop, steps)
    ratio = own["step"].median / steps[rival]
    say(f"{loop}: {ratio:.3f} of the step under {rival}; up to {EQUAL} is equal")


def rival_of(loop: str, steps_ms: Mapping[str, float]) -> str:
    """Name the peer to match: with large tensors the fastest preloaded malloc, else the default."""
    preloaded = [name for name in steps_ms if name != DEFAULT.name]
    if LOOPS[loop].small or not preloaded:
        return DEFAULT.name
    return min(preloaded, key=lambda name: steps_ms[name])


def bench_loop(
    recorder: Recorder, name: str, peers: list[Peer], *, rounds: int, capacity: str
) -> None:
    """Measure one loop under every allocator."""
    loop = LOOPS[name]
    with workers(name, peers, capacity) as started:
        turns = interleave(
            {
                allocator: partial(worker.take_turn, loop.lead_in, loop.steps)
                for allocator, worker in started.items()
            },
            rounds=rounds,
            warm_up=1,
        )
        threads = started[DEFAULT.name].threads
    check_same_work(turns)
    settings: dict[str, Setting] = {
        "loop": loop.what,
        "dtype": "float32",
        "threads": threads,
        "rounds": rounds,
        "lead_in_steps_a_turn": loop.lead_in,
        "timed_steps_a_turn": loop.steps,
        "pool_capacity": capacity,
    }
    report(recorder, name, turns, settings)


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    options.add_argument("--only", choices=tuple(LOOPS), help="one loop")
    options.add_argument("--capacity", default="6GiB", help="capacity of the pool")
    options.add_argument("--peers-only", action="store_true", help="leave the pool out")
    chosen = options.parse_args()
    recorder = Recorder(record=chosen.record, allow_dirty=chosen.allow_dirty)
    installed, missing = preloaded_peers()
    for name in missing:
        say(f"skipped: {name} is not installed")
    if not CORE_LIBRARY.exists():
        say(f"skipped: {OWN} is not built ({CORE_LIBRARY.name}); run `make build`")
    with_pool = CORE_LIBRARY.exists() and not chosen.peers_only
    for name in [chosen.only] if chosen.only else LOOPS:
        bench_loop(
            recorder,
            name,
            [DEFAULT, *installed],
            rounds=3 if chosen.quick else 12,
            capacity=chosen.capacity if with_pool else "-",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
