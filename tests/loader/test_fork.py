"""A forked child keeps the batches that its parent held, whatever the parent does next."""

from __future__ import annotations

import errno
import os

import pytest
from helpers.pools import run_script

from vramkit.loader._arena import Arena
from vramkit.loader._forks import Workers, starting_workers

_SCRIPT = """
import os, sys, time
import torch
from torch.utils.data import Dataset, TensorDataset
import vramkit

torch.set_num_threads(1)  # OpenMP's threads are not in the child

class Rows(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index): return torch.full((50_000,), float(index))

data = TensorDataset(torch.arange(40.0).repeat_interleave(50_000).view(40, -1))
if sys.argv[1] == "workers":
    loader = vramkit.DataLoader(Rows(), batch_size=4, num_workers=1)
    get = lambda batch: batch
else:
    loader = vramkit.DataLoader(data, batch_size=4)
    get = lambda batch: batch[0]
batches = iter(loader)
held = get(next(batches))
read, write = os.pipe()
child = os.fork()
if child == 0:
    # The parent goes on, with this batch's place among those that it uses.
    assert os.read(read, 1) == b"x"
    right = bool((held == torch.arange(4.0)[:, None]).all())
    held.zero_()
    os._exit(0 if right else 1)
if sys.argv[2] == "kept":
    time.sleep(0.5)
    kept = held
del held
for _ in range(3):
    for batch in loader:
        get(batch).fill_(-1)
if sys.argv[2] == "kept":
    assert bool((kept == torch.arange(4.0)[:, None]).all())
os.write(write, b"x")
assert os.waitpid(child, 0)[1] == 0
if sys.argv[2] == "kept":
    assert bool((kept == torch.arange(4.0)[:, None]).all()), "the child's write is seen here"
"""


@pytest.mark.parametrize("path", ["workers", "arrays"])
@pytest.mark.parametrize("fate", ["dropped", "kept"])
def test_a_forked_child_keeps_its_batch(path: str, fate: str) -> None:
    run_script(_SCRIPT, path, fate, timeout_s=60)


_SLOW_CHILD = """
import os, time
import torch
from torch.utils.data import Dataset
import vramkit
from vramkit.loader import _memory_map

torch.set_num_threads(1)

class Rows(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index): return torch.full((50_000,), float(index))

make_private = _memory_map.make_private
def make_private_late(*arguments):
    time.sleep(3)
    make_private(*arguments)
_memory_map.make_private = make_private_late

loader = vramkit.DataLoader(Rows(), batch_size=4, num_workers=1, persistent_workers=True)
held = next(iter(loader))
child = os.fork()
if child == 0:
    os._exit(not (held == torch.arange(4.0)[:, None]).all())
del held
end = time.monotonic() + 2.5
while time.monotonic() < end:
    for batch in loader:
        batch.fill_(-1)
assert os.waitpid(child, 0)[1] == 0
slots = loader._runtime.arena().slots
for _ in range(3):
    for batch in loader:
        pass
assert loader._runtime.arena().slots == slots
_memory_map.make_private = make_private
before = len(os.listdir("/proc/self/fd"))
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(not (batch[0, 0] == 36))
    assert os.waitpid(child, 0)[1] == 0
    batch = None
    for batch in loader:
        pass
assert len(os.listdir("/proc/self/fd")) <= before + 2
"""


def test_a_child_that_copies_slowly_keeps_its_batch() -> None:
    run_script(_SLOW_CHILD, timeout_s=60)


_WORKER_THAT_WRITES = """
import torch
from torch.utils.data import Dataset
import vramkit

torch.set_num_threads(1)

class Rows(Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return torch.full((50_000,), float(index))

class Writes(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index):
        before = held[0, 0].clone()
        held.add_(1)
        return before

first = vramkit.DataLoader(Rows(), batch_size=4, num_workers=1, persistent_workers=True)
held = next(iter(first))
second = vramkit.DataLoader(Writes(), batch_size=1, num_workers=2, prefetch_factor=1)
seen = []
for got in second:
    assert held.sum() == 6 * 50_000, "the worker's write is seen here"
    if len(seen) == 4:
        held = None
    seen.append(float(got))
    if held is None:
        break
held = torch.zeros(4, 50_000)
# The other loader goes on, and the workers keep what they had.
for batch in first:
    batch.fill_(-100)
assert seen == [0, 0, 1, 1, 2], seen
"""


def test_a_worker_has_its_parents_batches_for_itself() -> None:
    run_script(_WORKER_THAT_WRITES, timeout_s=60)


def test_slots_wait_for_the_end_of_the_workers_that_may_read_them() -> None:
    workers = Workers()
    with Arena(1 << 30) as arena:
        lease = arena.lease()
        arena.grow(lease.slot, 100_000)
        lease.slot.delivered = True
        index = lease.slot.index
        with starting_workers(workers):
            child = os.fork()
            if child == 0:
                os._exit(0)
        del lease
        os.waitpid(child, 0)
        assert arena.lease().slot.index != index
        arena.trim(0)
        assert arena.capacity_bytes >= 100_000
        workers.processes = []
        leases = [arena.lease() for _ in range(2)]
        assert index in [each.slot.index for each in leases]


def test_without_file_descriptors_a_slot_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many open files")

    with Arena(1 << 30) as arena:
        lease = arena.lease()
        arena.grow(lease.slot, 100_000)
        lease.slot.delivered = True
        index = lease.slot.index
        with monkeypatch.context() as patch:
            patch.setattr(os, "pipe", refuse)
            child = os.fork()
            if child == 0:
                os._exit(0)
        os.waitpid(child, 0)
        del lease
        assert arena.lease().slot.index != index


_OLD_BATCHES = """
import os, sys
import torch
from torch.utils.data import Dataset
import vramkit

torch.set_num_threads(1)

class Rows(Dataset):
    def __len__(self): return 16
    def __getitem__(self, index): return torch.full((50_000,), float(index))

class Old(Dataset):
    def __init__(self, batches): self.batches = batches
    def __len__(self): return len(self.batches)
    def __getitem__(self, index): return self.batches[index]

first = vramkit.DataLoader(Rows(), batch_size=4, num_workers=2)
held = list(first)
if sys.argv[1] == "closed":
    first.close()
else:
    del first
# What has the number that the first loader's memory file had.
files = [open("/dev/zero", "r+b", buffering=0) for _ in range(2)]
second = vramkit.DataLoader(Old(held), batch_size=None, num_workers=2)
assert [batch[:, 7].tolist() for batch in second] == [
    [float(each) for each in range(begin, begin + 4)] for begin in range(0, 16, 4)
]
child = os.fork()
if child == 0:
    os._exit(held[3][2, 9].item() != 14)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_later_workers_have_the_batches_of_a_loader_that_is_gone(way: str) -> None:
    run_script(_OLD_BATCHES, way, timeout_s=60)


_NO_MEMORY = """
import os, time
import torch
from torch.utils.data import Dataset
import vramkit
from vramkit.errors import SystemCallError
from vramkit.loader import _memory_map

torch.set_num_threads(1)

class Rows(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index): return torch.full((50_000,), float(index))

def refuse(*arguments):
    raise SystemCallError(12, "there is no memory")
_memory_map.make_private = refuse

loader = vramkit.DataLoader(Rows(), batch_size=4, num_workers=1, persistent_workers=True)
held = next(iter(loader))
read, write = os.pipe()
child = os.fork()
if child == 0:
    held[0].fill_(7)
    assert os.read(read, 1) == b"x"
    os._exit(not (held[:, 3].tolist() == [7.0, 1.0, 2.0, 3.0]))
time.sleep(0.3)
assert held[:, 3].tolist() == [0.0, 1.0, 2.0, 3.0], "the child's write is seen here"
del held
for _ in range(3):
    for batch in loader:
        batch.fill_(-1)
os.write(write, b"x")
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_without_memory_for_a_copy() -> None:
    run_script(_NO_MEMORY, timeout_s=60)
