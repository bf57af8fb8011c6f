import gc
from collections.abc import Iterator

import pytest
import torch

from vramkit import MemoryPool


@pytest.fixture
def pool() -> Iterator[MemoryPool]:
    """A pool of 256 MiB whose invariants hold afterwards."""
    made = MemoryPool("256MiB", device="cpu")
    yield made
    gc.collect()
    made._core.check()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # OpenMP's threads spin while they wait; on few cores that makes small networks 20 times slower.
    torch.set_num_threads(1)
