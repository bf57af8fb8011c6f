"""Builds the driver in native/ once and runs it."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks._shared.peers import Peer
from benchmarks._shared.provenance import ROOT

CORE_LIBRARY = ROOT / "vramkit" / "_lib" / "libvramkit_core.so"
_SOURCES = Path(__file__).parent / "native"
_HEADER = ROOT / "csrc" / "bind" / "c" / "vramkit.h"
_DRIVER = ROOT / "build" / "benchmarks" / "pool_core"


@dataclass(frozen=True)
class Outcome:
    """One process's samples, and the pool's books (all zero for another allocator)."""

    samples: Sequence[float]
    capacity_bytes: int
    metadata_bytes: int
    stitched_requests: int
    mapping_calls: int


def build() -> None:
    """Compile the driver when it is older than its sources.

    Raises:
        RuntimeError: there is no C++ compiler, or it reported an error.
    """
    sources = sorted(_SOURCES.glob("*.cpp"))
    inputs = [*sources, *_SOURCES.glob("*.h"), _HEADER]
    if _DRIVER.exists() and all(_DRIVER.stat().st_mtime > path.stat().st_mtime for path in inputs):
        return
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("no C++ compiler found: install g++, or name one in CXX")
    _DRIVER.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Wundef", "-Wconversion", "-Werror"]
    command = [compiler, *flags, f"-I{_HEADER.parent}", *map(str, sources), "-ldl"]
    done = subprocess.run(
        [*command, "-o", str(_DRIVER)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the benchmark driver does not compile:\n{done.stderr}")


def run(mode: str, allocator: str, name: str, arguments: Sequence[object], peer: Peer) -> Outcome:
    """Run the driver once, in a process that is started under ``peer``.

    Raises:
        RuntimeError: the driver ended with an error; its text is passed on.
    """
    command = [str(_DRIVER), mode, allocator, name, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=peer.environment()
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{mode} of {allocator} in a process under {peer.name}: {done.stderr.strip()}"
        )
    result = json.loads(done.stdout)
    del result["unit"]
    return Outcome(**result)
