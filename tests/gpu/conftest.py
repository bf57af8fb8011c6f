from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.gpu import clean

from vramkit import MemoryPool

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        # The machines with GPUs have packages of all ages, whose warnings are not ours.
        item.add_marker(pytest.mark.filterwarnings("default"))
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _clean_device() -> Iterator[None]:
    clean()
    yield
    clean()


@pytest.fixture
def pool(_clean_device: None) -> Iterator[MemoryPool]:
    """A pool of 1 GiB whose invariants hold afterwards."""
    made = MemoryPool("1GiB", device="cuda")
    yield made
    torch.cuda.synchronize()
    made._core.check()
