"""Which tensors the pool gets: the device's, of every thread, inside the scope."""

import gc
import threading

import pytest
import torch
from helpers.gpu import bytes_on_gpu
from helpers.pools import MIB, is_in, is_native, stats_of

from vramkit import MemoryPool
from vramkit.errors import PoolClosedError


def test_only_inside_the_scope(pool: MemoryPool) -> None:
    before = torch.empty(1000, device="cuda")
    with pool:
        inside = torch.empty(1000, device="cuda")
    after = torch.empty(1000, device="cuda")
    assert is_native(before)
    assert is_in(pool, inside)
    assert is_native(after)


def test_nested_pools(pool: MemoryPool) -> None:
    other = MemoryPool("64MiB", device="cuda")
    on_cpu = MemoryPool("64MiB", device="cpu")
    with pool, other, on_cpu:
        assert is_in(other, torch.empty(1000, device="cuda"))
        assert is_in(on_cpu, torch.empty(1000))
        with pool:
            assert is_in(pool, torch.empty(1000, device="cuda"))
    assert is_native(torch.empty(1000, device="cuda"))


def test_two_pools_on_one_device_keep_apart(pool: MemoryPool) -> None:
    other = MemoryPool("256MiB", device="cuda")
    with pool:
        mine = bytes_on_gpu(100 * MIB).fill_(1)
    with other:
        theirs = bytes_on_gpu(100 * MIB).fill_(2)
        mixed = mine + theirs
    assert is_in(other, mixed)
    assert bool((mixed == 3).all())
    assert (pool.stats().live_bytes, other.stats().live_bytes) == (100 * MIB, 200 * MIB)


def test_an_exception_ends_the_scope(pool: MemoryPool) -> None:
    with pytest.raises(ZeroDivisionError), pool:
        raise ZeroDivisionError
    assert is_native(torch.empty(1000, device="cuda"))


def test_outside(pool: MemoryPool) -> None:
    with pool:
        with pool.outside():
            native = torch.empty(1000, device="cuda")
        inside = torch.empty(1000, device="cuda")
    assert is_native(native)
    assert is_in(pool, inside)


def test_decorator(pool: MemoryPool) -> None:
    @pool
    def make() -> torch.Tensor:
        return torch.ones(1000, device="cuda")

    assert is_in(pool, make())
    assert is_native(torch.empty(1000, device="cuda"))


def test_backward_in_autograd_s_own_thread(pool: MemoryPool) -> None:
    with pool:
        layer = torch.nn.Linear(100, 100, device="cuda")
        optimizer = torch.optim.Adam(layer.parameters())
        threads: set[int] = set()

        def look(grad: torch.Tensor) -> None:
            threads.add(threading.get_ident())
            assert is_in(pool, grad)

        layer.weight.register_hook(look)
        layer(torch.randn(5, 100, device="cuda")).sum().backward()
        optimizer.step()
    assert threads
    assert threads.isdisjoint({threading.get_ident()})
    assert layer.weight.grad is not None
    assert is_in(pool, layer.weight.grad)
    assert is_in(pool, optimizer.state[layer.weight]["exp_avg"])


def test_threads(pool: MemoryPool) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        try:
            start.wait()
            with torch.cuda.stream(torch.cuda.Stream()):
                for round_ in range(50):
                    value = (seed * 50 + round_) % 251
                    sizes = [1000, 3 * MIB, 100 + round_ * 4099]
                    kept = [bytes_on_gpu(size).fill_(value) for size in sizes]
                    assert all(is_in(pool, tensor) for tensor in kept)
                    assert all(bool((tensor == value).all()) for tensor in kept)
        except BaseException as err:  # noqa: BLE001  # told to the test's own thread
            failures.append(err)

    with pool:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert pool.stats().live_blocks == 0


def test_frees_from_a_thread_without_a_cuda_context(pool: MemoryPool) -> None:
    with pool:
        kept = [bytes_on_gpu(MIB) for _ in range(10)]
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert pool.stats().live_blocks == 0


def test_tensors_outlive_scope_and_pool() -> None:
    pool = MemoryPool("64MiB", device="cuda")
    with pool:
        kept = torch.arange(1_000_000, device="cuda")
    handle = pool._core.handle
    del pool
    gc.collect()
    assert stats_of(handle)["live_blocks"] == 1
    view = kept[10:20]
    del kept
    assert view.tolist() == list(range(10, 20))
    del view
    with pytest.raises(PoolClosedError):
        stats_of(handle)
