"""Worker threads: they end with their loader and with the process, and epochs do not mix."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import weakref
from typing import Any

import pytest
import torch
from helpers.pools import run_script
from torch.utils.data import Dataset, IterableDataset

import vramkit
from vramkit.errors import LoaderClosedError


class Squares(Dataset[Any]):
    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.running = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        self.running += 1
        time.sleep(self.seconds)
        self.running -= 1
        return torch.tensor(float(index**2))


class SlowStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        for each in range(12):
            time.sleep(0.01)
            yield each


_EXIT = """
import sys, time
import torch
from torch.utils.data import Dataset
import vramkit

class Slow(Dataset):
    def __len__(self): return 100
    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.rand(200, 200) @ torch.rand(200, 200)

loader = vramkit.DataLoader(Slow(), 2, num_workers=3, workers="thread", prefetch_factor=4)
batches = iter(loader)
next(batches)
if sys.argv[1] == "held":
    sys.held = batches, loader
elif sys.argv[1] == "dropped":
    del batches, loader
else:
    raise SystemExit(0)
"""


@pytest.mark.parametrize("how", ["held", "dropped", "exit"])
def test_the_process_may_end_while_threads_fetch(how: str) -> None:
    for _ in range(3):
        run_script(_EXIT, how, timeout_s=30)


def test_close_waits_for_what_threads_are_fetching() -> None:
    data, before = Squares(0.2), set(threading.enumerate())
    loader = vramkit.DataLoader(data, 1, num_workers=2, workers="thread")
    batches = iter(loader)
    next(batches)
    loader.close()
    assert data.running == 0
    assert set(threading.enumerate()) <= before


def test_close_says_which_threads_it_has_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vramkit.loader._threads._JOINED_S", 0.1)
    entered, go_on = threading.Event(), threading.Event()

    class Blocked(Squares):
        def __getitem__(self, index: int) -> Any:
            entered.set()
            assert go_on.wait(20)
            return index

    loader = vramkit.DataLoader(Blocked(), 1, num_workers=1, workers="thread")
    batches = iter(loader)
    assert entered.wait(20)
    with pytest.warns(RuntimeWarning, match=r"1 of 1 worker threads .* have not ended after 0.1 s"):
        loader.close()
    go_on.set()
    del batches


def test_an_epoch_gets_nothing_of_the_one_before() -> None:
    loader = vramkit.DataLoader(
        SlowStream(), 2, num_workers=1, workers="thread", persistent_workers=True, prefetch_factor=3
    )
    for _ in range(4):
        next(iter(loader))
    assert [batch.tolist() for batch in loader] == [[each, each + 1] for each in range(0, 12, 2)]
    loader.close()


def _in_child(check: Any) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1]


def test_a_forked_child_makes_threads_of_its_own() -> None:
    loader = vramkit.DataLoader(
        Squares(), 4, num_workers=1, workers="thread", persistent_workers=True
    )
    expected = torch.cat(list(loader)).tolist()
    batches = iter(loader)
    next(batches)

    def raises() -> bool:
        try:
            next(batches)
        except LoaderClosedError as err:
            return "iterate the loader anew here" in str(err)
        return False

    assert _in_child(raises) == 0
    assert _in_child(lambda: torch.cat(list(loader)).tolist() == expected) == 0
    assert len(list(batches)) == 9
    loader.close()


def test_a_crew_that_cannot_be_complete_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def fail(self: threading.Thread) -> None:
        if self.name == "vramkit-loader-1":
            raise RuntimeError("can't start new thread")
        start(self)

    loader = vramkit.DataLoader(Squares(), 4, num_workers=3, workers="thread")
    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            iter(loader)
    deadline = time.monotonic() + 5
    while not set(threading.enumerate()) <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
    assert len(list(loader)) == 10
    loader.close()


@pytest.mark.parametrize("in_order", [True, False])
def test_close_while_another_thread_waits_for_a_batch(in_order: bool) -> None:
    loader = vramkit.DataLoader(Squares(0.2), 1, num_workers=2, workers="thread", in_order=in_order)
    raised: list[BaseException] = []

    def iterate() -> None:
        try:
            list(loader)
        except LoaderClosedError as err:
            raised.append(err)

    thread = threading.Thread(target=iterate)
    thread.start()
    time.sleep(0.5)
    loader.close()
    thread.join(10)
    assert len(raised) == 1


def test_an_exception_leaves_no_cycle() -> None:
    class Fails(Squares):
        def __getitem__(self, index: int) -> Any:
            raise OSError("no such sample")

    data = Fails()
    held = weakref.ref(data)
    loader = vramkit.DataLoader(data, 4, num_workers=2, workers="thread")
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(OSError):
            next(iter(loader))
        loader.close()
        del loader, data
        # Threads may be about to end.
        deadline = time.monotonic() + 5
        while held() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held() is None
    finally:
        gc.enable()
