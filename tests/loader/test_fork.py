"""A forked child keeps the batches that its parent held, whatever the parent does next."""

from __future__ import annotations

import pytest
from helpers.pools import run_script

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
