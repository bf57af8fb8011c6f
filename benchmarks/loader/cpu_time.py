"""CPU seconds of this process and of all processes that it has started."""

import os
import resource
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Positions in /proc/<pid>/stat after the name: the parent, and the times of user and system, of
# the process itself and of its ended children.
_PARENT, _TIMES = 1, slice(11, 15)


def cpu_seconds() -> float:
    """Return the CPU time that was used so far, also by workers that have ended.

    What a worker has used counts while it lives, and goes on counting when it has ended, so the
    difference of two calls is what was used between them.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + _descendants_cpu_seconds()


def _descendants_cpu_seconds() -> float:
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name of a process may hold spaces and parentheses.
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has just ended.
        ticks[int(folder.name)] = sum(map(int, fields[_TIMES]))
        children.setdefault(int(fields[_PARENT]), []).append(int(folder.name))
    total, waiting = 0, [os.getpid()]
    while waiting:
        found = children.get(waiting.pop(), [])
        total += sum(ticks[child] for child in found)
        waiting += found
    return total / _TICKS_PER_S
