"""A child process of the CPU benchmark: runs steps of one loop when its parent asks for them.

usage: python -m benchmarks.pool_cpu.worker LOOP MAPPED_AS CAPACITY

CAPACITY "-" leaves PyTorch's default allocator in charge; anything else opens a MemoryPool of that
capacity. Each line "LEAD_IN STEPS" on standard input is answered by one JSON object a line.
"""

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

import torch

from benchmarks._shared.provenance import measure_this_tree
from benchmarks.pool_cpu.loops import LOOPS, Step


def faults() -> int:
    """Return the minor page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_rss_kib() -> int:
    """Return the most memory that was resident; ru_maxrss would count the parent's at the fork."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0])


def take_turn(step: Step, lead_in: int, steps: int) -> dict[str, object]:
    """Run ``lead_in`` steps untimed and ``steps`` timed ones."""
    for _ in range(lead_in):
        step()
    loss = 0.0
    times_ms = []
    faults_before = faults()
    for _ in range(steps):
        start = time.perf_counter()
        loss = step()
        times_ms.append((time.perf_counter() - start) * 1e3)
    faults_a_step = (faults() - faults_before) / steps
    return {"ms": times_ms, "faults": faults_a_step, "peak_rss_kib": peak_rss_kib(), "loss": loss}


def allocator_scope(capacity: str) -> contextlib.AbstractContextManager[object]:
    """Return the scope in which the loop runs."""
    if capacity == "-":
        return contextlib.nullcontext()
    measure_this_tree()
    import vramkit

    pool: contextlib.AbstractContextManager[object] = vramkit.MemoryPool(capacity, device="cpu")
    return pool


def answer(message: dict[str, object]) -> None:
    """Send one line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve turns until standard input ends."""
    loop, mapped_as, capacity = sys.argv[1:]
    if mapped_as not in Path("/proc/self/maps").read_text(encoding="utf-8"):
        raise RuntimeError(f"no file named like {mapped_as!r} is mapped: it was not preloaded")
    torch.manual_seed(0)
    with allocator_scope(capacity):
        step = LOOPS[loop].make()
        answer({"threads": torch.get_num_threads()})
        for line in sys.stdin:
            lead_in, steps = map(int, line.split())
            answer(take_turn(step, lead_in, steps))


if __name__ == "__main__":
    main()
