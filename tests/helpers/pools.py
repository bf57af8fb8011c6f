"""Asks the core where a tensor lives, and runs scripts in a fresh interpreter."""

import ctypes
import subprocess
import sys
import textwrap

import torch

from vramkit import MemoryPool
from vramkit._core import STATS_FIELDS, owner
from vramkit._core._library import call
from vramkit._core._structs import Stats

MIB = 1 << 20


def is_in(pool: MemoryPool, tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is the pool's."""
    return owner(tensor.data_ptr()) == pool._core.handle


def is_native(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is no pool's."""
    return owner(tensor.data_ptr()) == 0


def stats_of(handle: int) -> dict[str, int]:
    """The counters of a pool whose object may be gone; raises as the core does."""
    stats = Stats()
    call("vramkit_pool_stats", handle, ctypes.byref(stats))
    return {name: getattr(stats, name) for name in STATS_FIELDS}


def run_script(source: str, *arguments: str, timeout_s: float = 120) -> str:
    """Run Python source in a fresh interpreter; assert that it succeeds; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    # What fails while the interpreter ends changes no exit status.
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout
