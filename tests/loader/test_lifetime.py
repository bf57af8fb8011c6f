"""Batches and loaders live as long as somebody holds them, and leave nothing behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import datasets as d
from helpers.batches import assert_same
from helpers.pools import run_script
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import TensorDataset

import vramkit
from vramkit.errors import LoaderClosedError

DATA = {
    "pixels": lambda: d.Pixels(12, 20_000),
    "tensors": lambda: TensorDataset(torch.arange(12.0).repeat_interleave(20_000).view(12, -1)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "inline": {},
    "process": {"num_workers": 1},
    "persistent": {"num_workers": 1, "persistent_workers": True},
    "thread": {"num_workers": 1, "workers": "thread"},
}
both = pytest.mark.parametrize("data", DATA)
ways = pytest.mark.parametrize("way", OPTIONS)


def _values(batches: list[Any]) -> list[list[float]]:
    return [batch[0].mean(1).tolist() for batch in batches]


WANT = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0]]


@both
@ways
def test_kept_batches_stay(data: str, way: str) -> None:
    loader = vramkit.DataLoader(DATA[data](), batch_size=4, **OPTIONS[way])
    kept = list(loader)
    for _ in range(3):
        for batch in loader:
            batch[0].zero_()
        gc.collect()
    assert _values(kept) == WANT
    loader.close()
    del loader
    gc.collect()
    assert _values(kept) == WANT


@both
@ways
def test_early_break(data: str, way: str) -> None:
    loader = vramkit.DataLoader(DATA[data](), batch_size=4, **OPTIONS[way])
    for _ in range(4):
        for batch in loader:
            assert _values([batch]) == WANT[:1]
            break
    assert _values(list(loader)) == WANT


@both
@pytest.mark.parametrize("way", ["inline", "process", "thread"])
def test_iterators_side_by_side(data: str, way: str) -> None:
    loader = vramkit.DataLoader(DATA[data](), batch_size=4, **OPTIONS[way])
    assert [_values(list(pair)) for pair in zip(loader, loader, strict=True)] == [
        [each, each] for each in WANT
    ]


@both
@ways
def test_the_iterator_outlives_its_loader(data: str, way: str) -> None:
    iterator = iter(vramkit.DataLoader(DATA[data](), batch_size=4, **OPTIONS[way]))
    gc.collect()
    assert _values(list(iterator)) == WANT


@both
@ways
def test_close(data: str, way: str) -> None:
    with vramkit.DataLoader(DATA[data](), batch_size=4, **OPTIONS[way]) as loader:
        iterator = iter(loader)
        batch = next(iterator)
    loader.close()
    assert _values([batch]) == WANT[:1]
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(iterator)
    with pytest.raises(LoaderClosedError, match="make a new one to iterate again"):
        iter(loader)


@both
def test_threads_iterate_one_loader(data: str) -> None:
    loader = vramkit.DataLoader(DATA[data](), batch_size=4, num_workers=1)
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(list(loader))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [_values(batches) for batches in got] == [WANT] * 3


@both
@pytest.mark.parametrize("workers", [0, 1])
def test_a_saved_batch_holds_only_itself(data: str, workers: int) -> None:
    batch = next(iter(vramkit.DataLoader(DATA[data](), batch_size=4, num_workers=workers)))
    out = io.BytesIO()
    torch.save(batch[0], out)
    assert len(out.getvalue()) < batch[0].nbytes + 4000
    assert_same(pickle.loads(pickle.dumps(batch[0])), batch[0])
    shared = batch[0].clone()
    batch[0].share_memory_()
    assert_same(batch[0], shared)


@both
def test_a_forked_child_goes_on(data: str) -> None:
    loader = vramkit.DataLoader(DATA[data](), batch_size=4)
    iterator = iter(loader)
    next(iterator)
    child = os.fork()
    if not child:
        # mean() would start threads, which a forked child must not.
        rest = [batch[0][:, 0].tolist() for batch in iterator]
        os._exit(0 if rest == WANT[1:] and len(list(loader)) == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _values(list(iterator)) == WANT[1:]


@both
@ways
def test_copies_of_a_loader(data: str, way: str) -> None:
    loader = vramkit.DataLoader(DATA[data](), batch_size=4, **OPTIONS[way])
    if way != "persistent":
        list(loader)
    for copied in (copy.deepcopy(loader), copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        assert _values(list(copied)) == WANT


def test_expanded_tensors_stay_small() -> None:
    def expand(_samples: Any) -> Any:
        return torch.ones(1, 1).expand(1 << 20, 1 << 20), torch.arange(5.0).expand(3, 5)

    loader = vramkit.DataLoader(d.Pixels(), num_workers=1, collate_fn=expand)
    large, small = next(iter(loader))
    assert (large.stride(), small.stride()) == ((0, 0), (0, 1))
    assert small.tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]] * 3
    assert loader.stats().staging_bytes < 1 << 20


def test_slots_of_streams_are_used_again() -> None:
    loader = vramkit.DataLoader(
        d.Stream(40), batch_size=2, num_workers=2, persistent_workers=True, prefetch_factor=4
    )
    counts = []
    for _ in range(5):
        list(loader)
        counts.append(loader._runtime.arena().slots)
    assert counts[-1] <= 28
    assert counts[-1] == counts[1]


def test_the_loader_is_a_torch_loader() -> None:
    loader = vramkit.DataLoader(d.Pixels(), batch_size=3)
    assert isinstance(loader, TorchDataLoader)
    assert len(loader) == 4
    with pytest.raises(ValueError, match="batch_size attribute should not be set after"):
        loader.batch_size = 4


_LEAKS = """
import gc, multiprocessing, os, sys, threading
import torch
from torch.utils.data import Dataset, TensorDataset
import vramkit

class Rows(Dataset):
    def __len__(self): return 12
    def __getitem__(self, index): return torch.full((50_000,), float(index))

options = dict(item.split("=") for item in sys.argv[2:])
options = {name: value if name == "workers" else int(value) for name, value in options.items()}
data = TensorDataset(torch.ones(12, 50_000)) if sys.argv[1] == "arrays" else Rows()
loader = vramkit.DataLoader(data, batch_size=2, **options)

def used():
    gc.collect()
    resident = int(open("/proc/self/statm").read().split()[1]) * 4096
    return (len(os.listdir("/proc/self/fd")), len(open("/proc/self/maps").readlines()),
            threading.active_count(), len(multiprocessing.active_children()), resident)

for epoch in range(50):
    for number, batch in enumerate(loader):
        if epoch % 3 == 0 and number == 2:
            break
    del batch
    if epoch == 9:
        before = used()
after = used()
print(before, after)
assert after[0] <= before[0], "descriptors"
assert after[1] <= before[1] + 12, "mappings"
assert after[2] <= before[2] + 2, "threads"
assert after[3] == before[3], "processes"
assert after[4] <= before[4] + (24 << 20), "memory"
"""


@pytest.mark.parametrize(
    "options",
    [
        ["arrays"],
        ["rows"],
        ["rows", "num_workers=2"],
        ["rows", "num_workers=2", "persistent_workers=1"],
        ["rows", "num_workers=2", "workers=thread"],
    ],
    ids=" ".join,
)
def test_nothing_leaks_over_fifty_epochs(options: list[str]) -> None:
    run_script(_LEAKS, *options, timeout_s=35)


_ENDS = """
import json, sys
import torch
from torch.utils.data import TensorDataset
import vramkit

# As some libraries do: what the script has made ends after modules that were imported later.
json.script = sys.modules["__main__"]
loader = vramkit.DataLoader(
    TensorDataset(torch.ones(30, 50_000)), batch_size=2, num_workers=int(sys.argv[1])
)
batches = iter(loader)
batch = next(batches)
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_process_ends_silently_within_an_epoch(workers: str) -> None:
    run_script(_ENDS, workers)


def test_an_iterator_in_a_cycle_of_garbage() -> None:
    """The collector finalizes what is in a cycle in any order: pipes before their iterator."""
    loader = vramkit.DataLoader(d.Pixels(), num_workers=2)
    next(iter(loader))
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        iterator = iter(loader)
        next(iterator)
        cycle: list[Any] = [iterator]
        cycle.append(cycle)
        del iterator, cycle
        gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize("device", [None, "cpu"])
def test_an_exception_leaves_no_cycle(device: str | None) -> None:
    loader = vramkit.DataLoader(d.Alternating(), num_workers=1, device=device)
    iterator = iter(loader)
    source = weakref.ref(iterator._source)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with contextlib.suppress(ValueError):
                next(iterator)
        del iterator
        assert source() is None
    finally:
        gc.enable()
