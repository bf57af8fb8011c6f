"""Everything that works on CPU tensors works on a pool's."""

import copy
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pools import MIB, is_in

from vramkit import MemoryPool


def test_factories_use_the_pool(pool: MemoryPool) -> None:
    with pool:
        made = [
            torch.empty(100),
            torch.zeros(100),
            torch.ones(100),
            torch.arange(100),
            torch.tensor([1.0, 2.0]),
            torch.tensor(3.0),
            torch.tensor(np.arange(10)),
            torch.randn(100),
            torch.randperm(100),
            torch.eye(10),
            torch.ones(10).to(torch.bfloat16),
            torch.ones(10).clone(),
            torch.ones(10, 10) @ torch.ones(10, 10),
            torch.cat([torch.ones(3), torch.zeros(3)]),
            torch.ones(10).sort().values,
            torch.ones(10).nonzero(),
            torch.fft.fft(torch.ones(16)),
            torch.eye(2).to_sparse().values(),
        ]
    assert all(is_in(pool, tensor) for tensor in made)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in made)


def test_empty_tensors(pool: MemoryPool) -> None:
    with pool:
        empty = torch.empty(0)
        grown = torch.cat([empty, torch.ones(3)])
    assert empty.data_ptr() == 0
    assert grown.tolist() == [1, 1, 1]
    assert pool.stats().live_blocks == 1


def test_views_keep_the_block(pool: MemoryPool) -> None:
    with pool:
        base = torch.arange(1000)
        view = base[100:].view(30, 30).t()[::2]
    del base
    assert pool.stats().live_blocks == 1
    assert view[3, 4].item() == 100 + 4 * 30 + 6
    del view
    assert pool.stats().live_blocks == 0


def test_resize_in_and_out_of_the_scope(pool: MemoryPool) -> None:
    with pool:
        grown = torch.arange(100)
        grown.resize_(100_000)
        assert is_in(pool, grown)
        later = torch.arange(100)
    before = torch.arange(100)
    with pool:
        before.resize_(100_000)
    later.resize_(100_000)
    for tensor in (grown, later, before):
        assert tensor[:100].tolist() == list(range(100))
    storage = later.untyped_storage()
    storage.resize_(8)
    assert storage.nbytes() == 8


def test_out_arguments(pool: MemoryPool) -> None:
    with pool:
        out = torch.empty(0)
        torch.add(torch.ones(1000), 1, out=out.resize_(1000))
        assert is_in(pool, out)
    assert out.sum() == 2000


def test_numpy_both_ways(pool: MemoryPool) -> None:
    with pool:
        tensor = torch.arange(1000)
        array = tensor.numpy()
        wrapped = torch.from_numpy(np.arange(5))
        copied = torch.tensor(array)
    array[3] = 77
    assert tensor[3] == 77
    del tensor
    assert pool.stats().live_blocks == 2
    assert array[3] == 77
    assert array.sum() == 499_500 - 3 + 77
    assert wrapped.sum() == 10
    assert is_in(pool, copied)
    del array
    assert pool.stats().live_blocks == 1


def test_dlpack(pool: MemoryPool) -> None:
    with pool:
        tensor = torch.arange(10)
        array = np.from_dlpack(tensor)
    del tensor
    assert array.tolist() == list(range(10))


def test_save_and_load(pool: MemoryPool, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    model = torch.nn.Linear(30, 20)
    with pool:
        inside = torch.nn.Linear(30, 20)
        inside.load_state_dict(model.state_dict())
        torch.save(inside.state_dict(), path)
        loaded = torch.load(path)
        mapped = torch.load(path, mmap=True)
    outside = torch.load(path)
    for state in (loaded, mapped, outside):
        assert torch.equal(state["weight"], model.weight)
        assert torch.equal(state["bias"], model.bias)


def test_save_to_memory_and_tensors_sharing_a_storage(pool: MemoryPool) -> None:
    with pool:
        base = torch.arange(10.0)
        buffer = io.BytesIO()
        torch.save([base, base[2:5]], buffer)
        buffer.seek(0)
        whole, part = torch.load(buffer)
        part.fill_(9)
    assert whole.tolist() == [0, 1, 9, 9, 9, 5, 6, 7, 8, 9]


def test_deepcopy(pool: MemoryPool) -> None:
    with pool:
        model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.BatchNorm1d(10))
        twin = copy.deepcopy(model)
    outside = copy.deepcopy(model)
    assert is_in(pool, twin[0].weight)
    assert not is_in(pool, outside[0].weight)
    assert twin[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert torch.equal(twin[0].weight, model[0].weight)
    assert torch.equal(outside[0].weight, model[0].weight)


def test_share_memory_leaves_the_pool(pool: MemoryPool) -> None:
    with pool:
        tensor = torch.arange(1000).share_memory_()
        assert tensor.is_shared()
    assert tensor.sum() == 499_500
    assert not is_in(pool, tensor)
    assert pool.stats().live_blocks == 0


def test_copy_on_write_clones(pool: MemoryPool) -> None:
    with pool:
        base = torch.arange(1000)
        lazy = torch._lazy_clone(base)
        lazy[0] = 5
    assert base[0] == 0
    assert lazy[0] == 5
    assert lazy[999] == 999
    del base, lazy
    assert pool.stats().live_blocks == 0


def test_freed_by_another_thread(pool: MemoryPool) -> None:
    with pool:
        held = [torch.ones(MIB)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert pool.stats().live_blocks == 0


def test_a_generator_s_state(pool: MemoryPool) -> None:
    torch.manual_seed(3)
    expected = torch.rand(5)
    with pool:
        generator = torch.Generator().manual_seed(3)
        state = generator.get_state()
        assert torch.equal(torch.rand(5, generator=generator), expected)
        generator.set_state(state)
        assert torch.equal(torch.rand(5, generator=generator), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's own, on prototypes
@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("svd", lambda x: torch.linalg.svd(x)[1]),
        ("solve", lambda x: torch.linalg.solve(x @ x.t() + torch.eye(32), x)),
        ("unique", lambda x: torch.unique((x * 3).int())),
        ("topk", lambda x: x.topk(5).values),
        ("cumsum", lambda x: x.cumsum(0)),
        ("sparse", lambda x: x.relu().to_sparse() @ x),
        ("nested", lambda x: torch.nested.nested_tensor([x, x[:5]]).to_padded_tensor(0.0)),
        ("quantised", lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()),
        ("conv", lambda x: torch.conv2d(x[None, None], x[None, None, :3, :3])),
        ("masked", lambda x: x[x > 0]),
        ("fft", lambda x: torch.fft.rfft2(x).abs()),
        ("index_put", lambda x: x.index_put((torch.tensor([1, 2]),), torch.zeros(2, 32))),
        ("einsum", lambda x: torch.einsum("ij,jk->ik", x, x)),
        ("bfloat16", lambda x: (x.bfloat16() @ x.bfloat16()).float()),
    ],
)
def test_operations_give_the_same_bits(pool: MemoryPool, name: str, work: object) -> None:
    torch.manual_seed(len(name))
    data = torch.randn(32, 32)
    outside = work(data)  # type: ignore[operator]
    with pool:
        inside = work(data.clone())  # type: ignore[operator]
    assert torch.equal(outside, inside)


# PyTorch has deprecated TorchScript; programs still run it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_makes_a_runtime_error_of_a_shortage(pool: MemoryPool) -> None:
    """As it does of every exception of an operator; docs/pool.md says so."""
    unit = torch.jit.CompilationUnit("def make(n: int):\n    return torch.empty(n)\n")
    with pool, pytest.raises(RuntimeError, match="TorchScript interpreter") as caught:
        unit.make(1 << 40)
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert "vramkit pool on cpu is out of memory" in str(caught.value)
    with pool:
        assert is_in(pool, unit.make(1000))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_s_trace_keeps_the_error(pool: MemoryPool) -> None:
    with pool, pytest.raises(torch.OutOfMemoryError, match="vramkit pool on cpu"):
        torch.jit.trace(lambda x: torch.empty(1 << 40) + x, torch.ones(1))
