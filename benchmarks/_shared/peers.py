"""The malloc libraries to compare with, loaded into child processes with LD_PRELOAD."""

import ctypes.util
import os
from dataclasses import dataclass

# Debian's names, best first; the minimal tcmalloc is the same allocator without its profiler.
_CANDIDATES = {
    "jemalloc": ("jemalloc",),
    "tcmalloc": ("tcmalloc_minimal", "tcmalloc"),
    "mimalloc": ("mimalloc",),
}


@dataclass(frozen=True)
class Peer:
    """One malloc: its name, the library to preload (None: the C library's own), its trace."""

    name: str
    preload: str | None
    mapped_as: str

    def environment(self) -> dict[str, str]:
        """Return the environment of a child process that uses this malloc."""
        environment = {name: text for name, text in os.environ.items() if name != "LD_PRELOAD"}
        if self.preload is not None:
            environment["LD_PRELOAD"] = self.preload
        # tcmalloc would otherwise write a line for every allocation of more than 1 GiB.
        environment["TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD"] = str(1 << 62)
        return environment


GLIBC = Peer("malloc", None, "libc.so")


def preloaded_peers() -> tuple[list[Peer], list[str]]:
    """Return the preloadable peers that are installed, and the names of those that are not."""
    found: list[Peer] = []
    missing: list[str] = []
    for name, libraries in _CANDIDATES.items():
        preload = next(filter(None, map(ctypes.util.find_library, libraries)), None)
        if preload is None:
            missing.append(name)
        else:
            found.append(Peer(name, preload, f"lib{name}"))
    return found, missing
