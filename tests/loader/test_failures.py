"""Failures end in PyTorch's errors, and never in a hang."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing.context
import os
import signal
import time
from typing import Any

import pytest
import torch
from helpers import datasets as d
from helpers.batches import assert_same
from helpers.pools import run_script
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import IterableDataset, TensorDataset, get_worker_info

import vramkit
from vramkit.errors import SystemCallError
from vramkit.loader._gathering import Gathering


class TwoPartsError(Exception):
    """Cannot be made from one text."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class _Fails(d.Pixels):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            self.act()
        return super().__getitem__(index)


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("workers", ["process", "thread"])
def test_an_exception_with_two_arguments(workers: str) -> None:
    data = _Fails(lambda: _raise(TwoPartsError(7, "broken")))
    loader = vramkit.DataLoader(data, batch_size=2, num_workers=1, workers=workers)
    with pytest.raises(TwoPartsError) as caught:
        list(loader)
    assert (caught.value.code, caught.value.reason) == (7, "broken")
    if workers == "process":
        assert "Caught TwoPartsError in DataLoader worker process 0" in str(caught.value.__cause__)


@pytest.mark.parametrize("error", [ValueError("v"), KeyError("k"), OSError(2, "no"), MemoryError()])
def test_exceptions_are_pytorchs(error: Exception) -> None:
    caught = []
    for kind in (TorchDataLoader, vramkit.DataLoader):
        with pytest.raises(type(error)) as info:
            list(kind(_Fails(lambda: _raise(error)), batch_size=2, num_workers=1))
        caught.append(str(info.value).splitlines()[0])
        # A forked worker must not collect PyTorch's iterator: its destructor fails there.
        del info
        gc.collect()
    assert caught[0] == caught[1]


@pytest.mark.parametrize("options", [{}, {"workers": "thread"}, {"persistent_workers": True}])
def test_iteration_goes_on_after_an_exception(options: dict[str, Any]) -> None:
    loader = vramkit.DataLoader(d.Alternating(), num_workers=1, **options)
    iterator, seen = iter(loader), []
    while True:
        try:
            seen.append(int(next(iterator)[0, 0]))
        except ValueError:
            seen.append(-1)
        except StopIteration:
            break
    assert seen == [0, 1, -1, 3, 4, -1, 6, 7]


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker(way: signal.Signals) -> None:
    loader = vramkit.DataLoader(_Fails(lambda: os.kill(os.getpid(), way)), num_workers=1)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        list(loader)
    assert len(list(vramkit.DataLoader(d.Pixels(), num_workers=1))) == 11


def test_a_worker_that_exits() -> None:
    loader = vramkit.DataLoader(_Fails(lambda: os._exit(3)), num_workers=2)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        list(loader)


@pytest.mark.parametrize("workers", ["process", "thread"])
def test_a_timeout(workers: str) -> None:
    data = _Fails(lambda: time.sleep(1.5))
    loader = vramkit.DataLoader(data, num_workers=1, timeout=0.5, workers=workers)
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0\.5 seconds"):
        list(loader)


def _fail_at_start(worker: int) -> None:
    raise ValueError(f"worker {worker} does not start")


@pytest.mark.parametrize("workers", ["process", "thread"])
def test_worker_init_fn_fails(workers: str) -> None:
    loader = vramkit.DataLoader(
        d.Pixels(), num_workers=1, worker_init_fn=_fail_at_start, workers=workers
    )
    with pytest.raises(ValueError, match="worker 0 does not start"):
        list(loader)


def test_a_data_set_that_cannot_be_pickled() -> None:
    data = _Fails(lambda: None)
    for kind in (TorchDataLoader, vramkit.DataLoader):
        loader = kind(data, num_workers=1, multiprocessing_context="spawn")
        with pytest.warns(UserWarning, match="Got pickle error"), pytest.raises(AttributeError):
            iter(loader)


def test_a_batch_that_cannot_be_pickled() -> None:
    loader = vramkit.DataLoader(d.Pixels(), num_workers=1, collate_fn=lambda _: lambda: 1)
    with pytest.raises((AttributeError, TypeError), match=r"Caught \w+ in DataLoader worker"):
        list(loader)


@pytest.mark.parametrize("room", [1 << 12, 1 << 13, 1 << 16])
@pytest.mark.parametrize("prefetch", [500, 5000])
def test_any_number_of_batches_ahead(
    prefetch: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = multiprocessing.context.BaseContext.Pipe

    def small(self: Any, duplex: bool = True) -> Any:
        ends = make(self, duplex)
        # As for a user who has many pipes.
        fcntl.fcntl(ends[1].fileno(), fcntl.F_SETPIPE_SZ, room)
        return ends

    monkeypatch.setattr(multiprocessing.context.BaseContext, "Pipe", small)
    data = d.Listed(list(range(8000)))
    loader = vramkit.DataLoader(
        data,
        batch_size=2,
        num_workers=1,
        prefetch_factor=prefetch,
        multiprocessing_context="fork",
    )
    assert sum(len(batch) for batch in loader) == 8000


@pytest.mark.filterwarnings("ignore:a batch found no room:RuntimeWarning")
@pytest.mark.parametrize("staging", ["64KiB", "1GiB"])
def test_large_messages(staging: str) -> None:
    loader = vramkit.DataLoader(
        d.Pixels(8), num_workers=1, collate_fn=_large_message, staging_bytes=staging
    )
    assert list(loader) == [b"x" * 300_000] * 8


def _large_message(_samples: Any) -> bytes:
    return b"x" * 300_000


class _SlowFirst(IterableDataset):
    """One worker ends long before the other."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __iter__(self) -> Any:
        info = get_worker_info()
        for number in range(3):
            if info.id == 0:
                time.sleep(0.1)
            yield self.make(number)


@pytest.mark.filterwarnings("ignore:a batch found no room:RuntimeWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda number: torch.full((3,), number).as_subclass(d.Tagged),
        lambda number: torch.full((300_000,), number),
    ],
)
def test_handles_of_a_worker_that_has_ended(make: Any) -> None:
    options = {"batch_size": None, "num_workers": 2}
    ours = vramkit.DataLoader(_SlowFirst(make), staging_bytes="1MiB", **options)
    assert_same(list(ours), list(TorchDataLoader(_SlowFirst(make), **options)))


def test_an_exception_in_the_loop() -> None:
    def loop() -> None:
        for _ in vramkit.DataLoader(d.Pixels(), num_workers=2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()


_HEAD = """
import gc, os, resource, signal, sys, threading, time
import torch
from torch.utils.data import Dataset
import vramkit

class Rows(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index): return torch.full((50_000,), float(index))

def total(**options):
    loader = vramkit.DataLoader(Rows(), batch_size=2, **options)
    return sum(batch.sum().item() for batch in loader)
"""


def test_interruption() -> None:
    run_script(
        _HEAD
        + """
# Shells have commands in the background ignore it, and what these start.
signal.signal(signal.SIGINT, signal.default_int_handler)
over = threading.Event()
# Python drops an interrupt that comes within a hook of fork, and says so: another follows.
sys.unraisablehook = lambda dropped: None

def interrupt():
    while not over.wait(1.0):
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    while True:
        total(num_workers=2)
except KeyboardInterrupt:
    over.set()
    print("interrupted")
""",
        timeout_s=30,
    )


def test_a_limit_on_the_size_of_files() -> None:
    printed = run_script(
        _HEAD
        + """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
want = total()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
print(total(num_workers=1) == want)
""",
        timeout_s=30,
    )
    assert printed.split()[-1] == "True"


def test_too_few_descriptors() -> None:
    printed = run_script(
        _HEAD
        + """
want = total()
count = len(os.listdir("/proc/self/fd"))
for room in (0, 2, 4, 6, 8, 10, 12, 14, 17, 20, 60):
    gc.collect()
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + room, 20000))
    try:
        print(total(num_workers=1) == want)
    except OSError as err:
        print("OSError", err.errno)
    except RuntimeError as err:
        print("RuntimeError", str(err)[:20])
""",
        timeout_s=60,
    )
    assert printed.split()[-1] == "True"
    assert "False" not in printed


def test_a_batch_that_cannot_be_mapped_is_raised_in_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader = vramkit.DataLoader(d.Pixels(12, 20_000), batch_size=2, num_workers=2)
    want = [float(batch[0][0, 0]) for batch in loader]
    other = vramkit.DataLoader(d.Pixels(12, 20_000), batch_size=2, num_workers=2)
    batches, got = iter(other), []
    with monkeypatch.context() as patch:
        patch.setattr("vramkit.loader._memory_map.map_file", _refuse)
        with pytest.raises(SystemCallError, match="no addresses are left"):
            next(batches)
    while (batch := next(batches, None)) is not None:
        got.append(float(batch[0][0, 0]))
    assert got == want[1:]


def _refuse(*_arguments: Any, **_named: Any) -> int:
    raise SystemCallError(12, "no addresses are left")


def test_a_row_batch_without_a_slot_comes_in_ordinary_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.arange(24.0).repeat_interleave(20_000).view(24, -1)
    monkeypatch.setattr("vramkit.loader._memory_map.map_own", _refuse)
    loader = vramkit.DataLoader(TensorDataset(rows), batch_size=4)
    assert torch.equal(torch.cat([batch for (batch,) in loader]), rows)


def test_a_row_batch_that_cannot_be_begun_is_raised_in_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.arange(24.0).repeat_interleave(20_000).view(24, -1)
    loader = vramkit.DataLoader(TensorDataset(rows), batch_size=4, num_workers=2)
    start, failing = Gathering.start, [3]

    def fail_once(self: Any, indices: Any, *, stage: bool) -> Any:
        failing[0] -= 1
        if not failing[0]:
            raise MemoryError("no memory for this one")
        return start(self, indices, stage=stage)

    monkeypatch.setattr(Gathering, "start", fail_once)
    batches, got = iter(loader), []
    while True:
        try:
            got.append(float(next(batches)[0][0, 0]))
        except MemoryError:
            got.append(-1)
        except StopIteration:
            break
    assert got == [0, 4, -1, 12, 16, 20]


_AT_EXIT = """
import atexit, sys
def count():
    print(sum(len(batch[0]) for batch in loader))
if sys.argv[1] == "arrays":
    atexit.register(count)
import torch
from torch.utils.data import Dataset, TensorDataset
import vramkit

class Rows(Dataset):
    def __len__(self): return 16
    def __getitem__(self, index): return torch.full((1000,), float(index))

if sys.argv[1] == "arrays":
    loader = vramkit.DataLoader(TensorDataset(torch.arange(400_000).view(40, -1)), batch_size=4)
else:
    loader = vramkit.DataLoader(Rows(), batch_size=2, num_workers=2)
    iterator = iter(loader)
    print(len(list(iterator)))
"""


@pytest.mark.parametrize(("what", "printed"), [("arrays", "40"), ("exhausted", "8")])
def test_the_end_of_the_interpreter(what: str, printed: str) -> None:
    assert run_script(_AT_EXIT, what, timeout_s=30).split() == [printed]
