"""A time limit for each test of the loader, and no worker left behind."""

import gc
import multiprocessing
import signal
import time
from collections.abc import Iterator
from types import FrameType

import pytest
from torch.utils.data import _utils

_LIMIT_S = 40


@pytest.fixture(autouse=True, scope="session")
def quick_collections() -> None:
    """What was imported need not be searched for garbage after each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def quick_ends() -> Iterator[None]:
    """PyTorch's own workers end late after an exception: it need not wait 5 s for each of them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_utils, _utils.worker):
            patch.setattr(module, "MP_STATUS_CHECK_INTERVAL", 1.0)
        yield


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A hang fails its test instead of the whole run."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test has not ended after {_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def no_workers_left(time_limit: None) -> Iterator[None]:
    """Each test ends its workers, if only by dropping its loaders."""
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []
