"""Embedding tables on a GPU with rows in host memory, cached or not."""

import copy
import gc
import pickle
import random
import time
from pathlib import Path

import pytest
import torch
from helpers.gpu import LONG_SLEEP_CYCLES, SHORT_SLEEP_CYCLES
from helpers.seeds import stress_seed
from helpers.tables import assert_same_history, assert_same_state, random_tables

from vramkit.errors import InvalidArgumentError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag

PLACES = (
    {"placement": "host"},
    {"placement": "cached", "budget": "64KiB"},
    {"when_full": "spill", "budget": "64KiB"},
)


def _on_gpu(build):
    with torch.device("cuda"):
        return build()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _hits(table, ids) -> int:
    """How many of the ids are found on the device."""
    before = table._table.facts().hits
    with torch.no_grad():
        table(ids)
    return table._table.facts().hits - before


@pytest.mark.parametrize("number", range(4))
def test_random_histories_equal_the_cpus(number) -> None:
    seed = stress_seed() + number
    chance = random.Random(seed)
    torch.manual_seed(seed % 2**63)
    for _ in range(8):
        pair = random_tables(chance, _on_gpu, placed=True)
        assert_same_history(chance, *pair, device="cuda", placed=True)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("dim", [7, 128])
def test_all_placements_have_the_same_bits(dim, dtype, place) -> None:
    options = {"optimizer": "adam", "dtype": dtype, "seed": 3, "device": "cuda"}
    first = SparseEmbedding(None, dim, **options)
    second = SparseEmbedding(None, dim, **options, **place)
    out = torch.float32 if dtype is torch.int8 else dtype
    for _ in range(6):
        ids = torch.randint(3000, (4000,), device="cuda")
        # Their sums are exact, whatever order they are added in.
        grad = torch.randint(-8, 9, (4000, dim), device="cuda").to(out)
        outputs = [table.train()(ids) for table in (first, second)]
        assert torch.equal(*outputs)
        second.prefetch(torch.randint(3000, (500,), device="cuda"))
        for output in outputs:
            output.backward(grad)
        assert torch.equal(first.eval()(ids), second.eval()(ids))
    assert_same_state(first, second, 0, placed=True)
    assert second.stats().host_bytes > 0


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_rows_in_host_memory(mode) -> None:
    options = {"optimizer": "sgd", "mode": mode, "seed": 3, "device": "cuda"}
    first = SparseEmbeddingBag(4000, 64, **options)
    second = SparseEmbeddingBag(4000, 64, placement="host", **options)
    ids = torch.randint(4000, (300, 20), device="cuda")
    for table in (first, second):
        table(ids).square().sum().backward()
    assert torch.equal(first.eval()(ids), second.eval()(ids))


def test_rows_take_no_device_memory() -> None:
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    free, resident = torch.cuda.mem_get_info()[0], _resident_bytes()
    allocated = torch.cuda.memory_allocated()
    table = SparseEmbedding(None, 128, optimizer="sgd", placement="host", device="cuda")
    for first in range(0, 1 << 20, 1 << 18):
        table(torch.arange(first, first + (1 << 18), device="cuda")).sum().backward()
    stats = table.stats()
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    assert stats.host_bytes >= 512 << 20
    assert stats.device_bytes <= (1 << 20) * 80 * 1.13
    assert torch.cuda.memory_allocated() - allocated <= stats.device_bytes + (4 << 20)
    assert free - torch.cuda.mem_get_info()[0] < 256 << 20
    assert _resident_bytes() - resident >= 512 << 20
    state = table.state_dict()
    assert not state["rows"].is_cuda
    del table, state
    gc.collect()
    assert _resident_bytes() - resident < 300 << 20


@pytest.mark.parametrize("place", ["cached", "spill"])
def test_a_budget_holds_on_the_device(place) -> None:
    budget = 32 << 20
    options = {"placement": "cached"} if place == "cached" else {"when_full": "spill"}
    table = SparseEmbedding(None, 128, optimizer="adam", budget=budget, device="cuda", **options)
    before = torch.cuda.memory_allocated()
    for first in range(0, 80_000, 10_000):
        table(torch.arange(first, first + 10_000, device="cuda")).sum().backward()
    assert table.stats().device_bytes <= budget + 80_000 * 75 * 1.13 + (1 << 20)
    assert torch.cuda.memory_allocated() - before <= table.stats().device_bytes + (1 << 20)
    assert table.stats().host_bytes > 80_000 * 1536 - budget
    table._table.check()


def test_the_rows_of_a_batch_come_to_the_device() -> None:
    table = SparseEmbedding(
        None, 32, optimizer="adam", placement="cached", budget="8MiB", device="cuda"
    )
    table(torch.arange(100_000, device="cuda")).sum().backward()
    ids = torch.randperm(100_000, device="cuda")[:8000]
    table(ids).sum().backward()
    assert _hits(table, ids) == 8000
    later = torch.randperm(100_000, device="cuda")[:3000]
    table.prefetch(later)
    assert _hits(table, later) == 3000
    keys = table.keys()
    assert len(keys.unique()) == 100_000
    table._table.check()


def test_prefetching_does_not_wait_and_is_waited_for() -> None:
    options = {"optimizer": "adam", "seed": 1, "device": "cuda"}
    table = SparseEmbedding(None, 32, placement="cached", budget="2MiB", **options)
    plain = SparseEmbedding(None, 32, **options)
    ids = torch.arange(20_000, device="cuda")
    for module in (table, plain):
        module(ids).sum().backward()
    table.prefetch(ids[:100])
    for number in range(6):
        now, later = (ids[first : first + 3000] for first in (2500 * number, 2500 * number + 2500))
        output = table(now)
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG_SLEEP_CYCLES if number == 0 else SHORT_SLEEP_CYCLES // 20)
        start = time.perf_counter()
        table.prefetch(later)
        assert time.perf_counter() - start < 0.2
        output.square().sum().backward()
        plain(now).square().sum().backward()
    assert_same_state(plain, table, 0, placed=True)


def test_prefetching_in_a_graph_is_refused() -> None:
    table = SparseEmbedding(
        None, 32, optimizer="sgd", placement="cached", budget="1MiB", device="cuda"
    )
    ids = torch.arange(100, device="cuda")
    with (
        pytest.raises(InvalidArgumentError, match="call it before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        table.prefetch(ids)


@pytest.mark.parametrize("place", PLACES)
def test_graphs_capture_evaluation(place) -> None:
    table = SparseEmbedding(5000, 16, optimizer="sgd", device="cuda", **place)
    table(torch.arange(5000, device="cuda")).sum().backward()
    ids = torch.randint(5000, (900,), device="cuda")
    table.eval()(ids)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = table(ids)
    for _ in range(3):
        ids.copy_(torch.randint(5000, (900,), device="cuda"))
        table.train()(ids[:300]).sum().backward()
        table.prefetch(ids[300:600])  # the graph must not read rows that are on their way
        graph.replay()
        assert torch.equal(output, table.eval()(ids))


@pytest.mark.parametrize("place", PLACES)
def test_tables_move_between_devices(place) -> None:
    table = SparseEmbedding(None, 12, optimizer="adam", dtype=torch.int8, seed=4, **place)
    ids = torch.randperm(5000)[:3000]
    table(ids).sum().backward()
    wanted = table.eval()(ids)
    table.cuda()
    assert table.stats().host_bytes > 0
    assert torch.equal(table(ids.cuda()).cpu(), wanted)
    table.train()(ids.cuda()).sum().backward()
    state = table.state_dict()
    back = SparseEmbedding(None, 12, optimizer="adam", dtype=torch.int8)
    back.load_state_dict({name: value.cpu() for name, value in state.items()})
    assert torch.equal(back.eval()(ids), table.eval()(ids.cuda()).cpu())
    for again in (pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):
        assert_same_state(table, again, 0, placed=True)
    other = SparseEmbedding(None, 12, optimizer="adam", dtype=torch.int8, device="cuda")
    other.apply_changes(table.changes())
    assert_same_state(table, other, 0, placed=True)
    assert torch.equal(table.cpu()(ids), back(ids))


def test_streams_take_turns_at_a_cached_table() -> None:
    table = SparseEmbedding(
        *(None, 16),
        optimizer="sgd",
        lr=1.0,
        init_std=0.0,
        device="cuda",
        placement="cached",
        budget="512KiB",
    )
    ids = torch.arange(5000, device="cuda")
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for number in range(12):
        with torch.cuda.stream(streams[number % 3]):
            torch.cuda._sleep(SHORT_SLEEP_CYCLES // 20)
            output = table(ids + 1000 * number)
            table.prefetch(ids[:2000] + 500 * number)
            output.sum().backward()
    torch.cuda.synchronize()
    found = table.eval()(torch.arange(16_000, device="cuda"))
    times = torch.zeros(16_000)
    for number in range(12):
        times[1000 * number : 1000 * number + 5000] += 1
    assert torch.equal(found.cpu(), -times[:, None].expand(-1, 16))
    table._table.check()


def test_many_tables_leave_nothing_behind() -> None:
    ids = torch.arange(50_000, device="cuda")

    def use() -> None:
        for place in PLACES:
            table = SparseEmbedding(None, 128, optimizer="sgd", device="cuda", **place)
            output = table(ids)
            table.prefetch(ids[:1000])
            output.sum().backward()

    use()
    torch.cuda.synchronize()
    gc.collect()
    allocated, resident = torch.cuda.memory_allocated(), _resident_bytes()
    for _ in range(10):
        use()
    torch.cuda.synchronize()
    gc.collect()
    assert torch.cuda.memory_allocated() == allocated
    # One round has 75 MiB of rows in host memory.
    assert _resident_bytes() - resident < 64 << 20
