"""CUDA graphs and explicit MemPools: what they allocate is PyTorch's, not the pool's."""

import threading

import pytest
import torch
from helpers.gpu import ConvNet, bytes_on_gpu, clean
from helpers.pools import MIB, is_in, is_native
from torch import nn

from vramkit import MemoryPool
from vramkit.errors import PoolBusyError


def test_an_explicit_mem_pool_wins(pool: MemoryPool) -> None:
    explicit = torch.cuda.MemPool()
    with pool:
        with torch.cuda.use_mem_pool(explicit):
            theirs = torch.ones(1000, device="cuda")
        ours = torch.ones(1000, device="cuda")
    assert is_native(theirs)
    assert is_in(pool, ours)
    with torch.cuda.use_mem_pool(explicit), pool:
        assert is_native(torch.ones(1000, device="cuda"))
    assert float((theirs + ours).sum()) == 2000


def test_a_mem_pool_of_one_thread_leaves_the_others_routed(pool: MemoryPool) -> None:
    explicit = torch.cuda.MemPool()
    made: list[torch.Tensor] = []
    with pool, torch.cuda.use_mem_pool(explicit):
        thread = threading.Thread(target=lambda: made.append(torch.ones(1000, device="cuda")))
        thread.start()
        thread.join()
        assert is_native(torch.ones(1000, device="cuda"))
    assert is_in(pool, made[0])


def test_capture_and_replay(pool: MemoryPool) -> None:
    with pool:
        static = torch.zeros(MIB, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            inside = static + 1
            result = inside * 2
        after = torch.empty(1000, device="cuda")
        assert is_in(pool, static)
        assert is_native(result)
        assert is_in(pool, after)
        for value in (1.0, 5.0):
            static.fill_(value)
            filler = [bytes_on_gpu(100 * MIB).fill_(1) for _ in range(5)]
            graph.replay()
            assert bool((result == 2 * value + 2).all())
            del filler


def test_a_captured_training_step(pool: MemoryPool) -> None:
    def run() -> list[float]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(32, 64, device="cuda"), torch.randint(0, 8, (32,), device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses = []
        for _ in range(5):
            x.normal_()
            graph.replay()
            losses.append(loss.item())
        return losses

    outside = run()
    clean()
    with pool:
        inside = run()
    assert inside == outside


def test_make_graphed_callables(pool: MemoryPool) -> None:
    with pool:
        torch.manual_seed(4)
        model = ConvNet(8).cuda()
        x = torch.randn(4, 3, 16, 16, device="cuda", requires_grad=True)
        model.eval()
        with torch.no_grad():  # a graph of autograd's kept alive would break the capture
            expected = model(x)
        graphed = torch.cuda.make_graphed_callables(model, (x,))
        torch.testing.assert_close(graphed(x), expected)
        graphed(x).sum().backward()
        assert x.grad is not None


def test_other_threads_allocate_and_free_while_a_graph_is_captured(pool: MemoryPool) -> None:
    """Captured in the strictest mode, in which a wrong call of any thread ends the capture."""
    static = torch.zeros(MIB, device="cuda")
    side = torch.cuda.Stream()
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with torch.cuda.stream(side):
                while not stop.is_set():
                    kept = [bytes_on_gpu(size) for size in (1000, 3 * MIB, 20 * MIB)]
                    del kept
        except BaseException as err:  # noqa: BLE001  # told to the test's own thread
            failures.append(err)

    with pool:
        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(20):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="global"):
                    result = static
                    for _ in range(50):
                        result = result + 1
                graph.replay()
                assert float(result[0]) == 50
        finally:
            stop.set()
            thread.join()
    assert failures == []


def test_memory_freed_while_a_graph_is_captured_comes_back(pool: MemoryPool) -> None:
    side = torch.cuda.Stream()
    with pool:
        static = torch.zeros(1000, device="cuda")
        dropped = bytes_on_gpu(900 * MIB)
        dropped.record_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = static + 1
            del dropped
        graph.replay()
        again = bytes_on_gpu(900 * MIB).fill_(1)
        assert is_in(pool, again)
    assert float(result.sum()) == 1000


def test_a_pool_with_a_graph_is_closed_after_it() -> None:
    """The graph keeps the address of cuBLAS's workspace, which lies in the pool."""
    pool = MemoryPool("256MiB", device="cuda")
    left, right = (torch.randn(256, 256, device="cuda") for _ in range(2))
    expected = left @ right
    clean()
    graph = torch.cuda.CUDAGraph()
    with pool:
        assert torch.equal(left @ right, expected)
        with torch.cuda.graph(graph):
            result = left @ right
    if pool.stats().live_blocks:  # small products need no workspace with some versions
        with pytest.raises(PoolBusyError, match=r"1 CUDA graph still in memory may use cuBLAS"):
            pool.close()
    graph.replay()
    assert torch.equal(result, expected)
    del graph, result
    pool.close()
    assert torch.equal(left @ right, expected)
