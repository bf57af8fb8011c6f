from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.gpu import clean, train

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


@pytest.fixture(scope="session")
def _loaded() -> None:
    """Loads kernels, whose memory stays; several tests compare the device's free memory."""
    with MemoryPool("256MiB", device="cuda"):
        train(2)
        torch.cuda._sleep(1000)
    bool((torch.zeros(1000, dtype=torch.uint8, device="cuda").fill_(1) == 1).all())


@pytest.fixture(autouse=True)
def _clean_device(_loaded: None) -> Iterator[None]:
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
