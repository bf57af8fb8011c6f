"""Python stacks of allocations, which the core notes (csrc/bind/python/python_stacks.cpp)."""

from pathlib import Path

from vramkit._core import CorePool, set_library_paths


def record_stacks_of(pool: CorePool) -> None:
    """Note the Python stack of each allocation that is routed to the pool."""
    import torch

    homes = [Path(__file__).parents[1], Path(torch.__file__).parent]
    set_library_paths([f"{home}/" for home in homes])
    pool.record_stacks()
