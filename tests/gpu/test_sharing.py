"""Other processes: sharing a tensor, and forking."""

import pytest
import torch
from helpers.pools import is_in, is_native, run_script

from vramkit import MemoryPool


def test_sharing_a_pool_s_tensor_says_what_to_do(pool: MemoryPool) -> None:
    with pool:
        made = torch.ones(1000, device="cuda")
    with pytest.raises(RuntimeError, match=r"lies in a MemoryPool.*pool\.outside\(\)"):
        made.untyped_storage()._share_cuda_()
    assert float(made.sum()) == 1000


SHARE = """
import torch, torch.multiprocessing as mp
from vramkit import MemoryPool

def child(queue, answer):
    tensor = queue.get()
    answer.put(float(tensor.sum()))
    tensor.fill_(2)
    torch.cuda.synchronize()
    answer.put("filled")

if __name__ == "__main__":
    context = mp.get_context("spawn")
    queue, answer = context.Queue(), context.Queue()
    with MemoryPool("256MiB", device="cuda") as pool:
        made = torch.ones(1000, device="cuda")
        with pool.outside():
            shared = made.clone()
        process = context.Process(target=child, args=(queue, answer))
        process.start()
        queue.put(shared)
        assert answer.get(timeout=90) == 1000
        assert answer.get(timeout=90) == "filled"
        process.join()
        assert float(shared.sum()) == 2000
"""


def test_what_is_made_outside_can_be_shared(tmp_path: object) -> None:
    run_script(
        f"""
import runpy
path = {str(tmp_path)!r} + "/share.py"
open(path, "w").write({SHARE!r})
import os, subprocess, sys
# The script lies elsewhere, and vramkit may be only where this runs.
found = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
environment = dict(os.environ, PYTHONPATH=found)
subprocess.run([sys.executable, path], check=True, timeout=110, env=environment)
"""
    )


FORK = """
import os, sys, torch
from vramkit import MemoryPool
from vramkit.errors import ForkedPoolError

pool = MemoryPool("256MiB", device="cuda")
with pool:
    kept = [torch.ones(1000, device="cuda") for _ in range(3)]

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as err:
            print(repr(err), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def refused():
    for make in (
        lambda: MemoryPool("64MiB", device="cuda"),
        lambda: MemoryPool("64MiB", device=0),
        lambda: MemoryPool("64MiB"),
        lambda: torch.ones(1, device="cuda"),
    ):
        try:
            make()
        except RuntimeError as err:
            assert "Cannot re-initialize CUDA in forked subprocess" in str(err), err
        else:
            raise AssertionError("not refused")

def inherited():
    kept.clear()
    with MemoryPool("64MiB", device="cpu") as on_cpu:
        assert float(torch.ones(1000).sum()) == 1000
        assert on_cpu.stats().allocations > 0

def is_refused_the_parents_pool():
    try:
        with pool:
            raise AssertionError("entered")
    except ForkedPoolError:
        assert float(torch.ones(10).sum()) == 10

in_child(refused)
in_child(inherited)
in_child(is_refused_the_parents_pool)
with pool:
    in_child(inherited)
    more = torch.ones(1000, device="cuda")
assert float((kept[0] + more).sum()) == 2000
assert pool.stats().live_blocks == 4
pool._core.check()
"""


def test_a_forked_child_is_refused_as_in_pytorch_and_harms_nothing() -> None:
    run_script(FORK)


WORKERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from vramkit import MemoryPool

if __name__ == "__main__":
    with MemoryPool("256MiB", device="cuda") as pool:
        weight = torch.ones(8, device="cuda")
        data = TensorDataset(torch.arange(800.0).view(100, 8))
        loader = DataLoader(
            data, batch_size=10, num_workers=2, pin_memory=True, multiprocessing_context="fork"
        )
        total = 0.0
        for _ in range(2):
            for (batch,) in loader:
                total += float((batch.to("cuda", non_blocking=True) @ weight).sum())
        assert total == 2 * 319600.0, total
    pool._core.check()
"""


def test_forked_loader_workers() -> None:
    run_script(WORKERS)


def test_pinned_memory_is_not_the_pool_s(pool: MemoryPool) -> None:
    with pool:
        host = torch.ones(1000, pin_memory=True)
        on_gpu = host.cuda(non_blocking=True)
        torch.cuda.synchronize()
    assert host.is_pinned()
    assert is_native(host)
    assert is_in(pool, on_gpu)
