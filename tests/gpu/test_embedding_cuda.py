"""Embedding tables on a GPU: what the CPU's do, and what only a GPU has."""

import copy
import pickle
import random
import time

import pytest
import torch
from helpers.gpu import LONG_SLEEP_CYCLES, SHORT_SLEEP_CYCLES
from helpers.seeds import stress_seed
from helpers.tables import (
    DictTable,
    assert_evicts_alike,
    assert_same_history,
    assert_same_state,
    comparable,
    random_tables,
)
from torch import nn

from vramkit import MemoryPool
from vramkit.errors import InvalidArgumentError, RowIndexError, TableFullError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def _on_gpu(build):
    """Build a table on the GPU, its arguments notwithstanding."""
    with torch.device("cuda"):
        table = build()
    assert table._table.config.device.type == "cuda"
    return table


@pytest.mark.parametrize("number", range(12))
def test_random_histories_equal_the_cpus(number) -> None:
    seed = stress_seed() + number
    chance = random.Random(seed)
    torch.manual_seed(seed % 2**63)
    for _ in range(12):
        assert_same_history(chance, *random_tables(chance, _on_gpu), device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [4, 7, 64, 128, 200, 1024])
def test_lookups_have_the_cpus_bits(dim, dtype) -> None:
    first = SparseEmbedding(None, dim, optimizer="sgd", dtype=dtype, seed=7)
    second = SparseEmbedding(None, dim, optimizer="sgd", dtype=dtype, seed=7, device="cuda")
    ids = torch.randint(-(2**62), 2**62, (1001,))
    for train in (False, True, False):
        wanted, found = first.train(train)(ids), second.train(train)(ids.cuda())
        assert torch.equal(found.cpu(), wanted)
    assert_same_state(first, second, 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_updates_have_the_cpus_bits_where_sums_have_one_order(optimizer) -> None:
    tables = [
        SparseEmbedding(None, 1, optimizer=optimizer, dtype=torch.bfloat16, seed=3, device=device)
        for device in ("cpu", "cuda")
    ]
    for _ in range(20):
        ids, grad = torch.randperm(2000)[:700], torch.randn(700, 1).bfloat16()
        for table, device in zip(tables, ("cpu", "cuda"), strict=True):
            table(ids.to(device)).backward(grad.to(device))
    assert_same_state(*tables, 0)


def test_hot_rows_and_runs_are_the_same_each_time() -> None:
    ids = torch.where(torch.rand(200_000) < 0.3, 5, torch.randint(50_000, (200_000,))).cuda()
    grad = torch.randn(200_000, 32, device="cuda")
    states = []
    for _ in range(2):
        table = SparseEmbedding(50_000, 32, optimizer="adam", seed=1, device="cuda")
        for _ in range(2):
            table(ids).backward(grad)
        states.append(comparable(table))
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    exact = torch.zeros(50_000, 32, dtype=torch.float64, device="cuda")
    exact.index_add_(0, ids, grad.double())
    plain = SparseEmbedding(50_000, 32, optimizer="sgd", lr=1.0, init_std=0.0, device="cuda")
    plain(ids).backward(grad)
    found = plain.eval()(torch.arange(50_000, device="cuda"))
    torch.testing.assert_close(found.double(), -exact, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("when_full", ["evict_lru", "evict_lfu"])
def test_the_cpus_rows_are_given_up(when_full) -> None:
    chance = random.Random(stress_seed())
    torch.manual_seed(chance.getrandbits(32))
    options = {"optimizer": "adam", "seed": 1, "when_full": when_full}
    first = SparseEmbedding(None, 8, budget="16KiB", **options)
    for budget in range(12000, 1 << 16, 16):
        second = SparseEmbedding(None, 8, budget=budget, device="cuda", **options)
        if second.stats().capacity == first.stats().capacity:
            break
    assert_evicts_alike(chance, first, second, device="cuda")
    assert second.stats().bytes <= budget


@pytest.mark.parametrize("budgeted", [False, True])
def test_random_histories_equal_a_dictionary(budgeted) -> None:
    seed = stress_seed()
    chance = random.Random(seed)
    torch.manual_seed(seed % 2**63)
    options = {"optimizer": "sgd", "lr": 0.5, "seed": seed % 2**62, "device": "cuda"}
    if budgeted:
        options |= {"budget": 4000, "when_full": "evict_lru"}
    table, untrained = SparseEmbedding(None, 4, **options), SparseEmbedding(None, 4, **options)
    untrained.eval()
    model = DictTable(0.5, table.stats().capacity)
    for _ in range(150):
        action = chance.random()
        if action < 0.05:
            again = SparseEmbedding(None, 4, **options)
            again.load_state_dict(table.state_dict())
            table = again
        elif action < 0.2:
            ids = torch.arange(-60, 61)
            fresh = untrained(ids.cuda()).cpu()
            rows = [model.rows.get(int(key), fresh[at]) for at, key in enumerate(ids)]
            torch.testing.assert_close(table.eval()(ids.cuda()).cpu(), torch.stack(rows))
            table.train()
        else:
            key = chance.randint(-60, 60)
            ids = torch.tensor([key] * chance.randint(1, 5))
            grads = torch.randn(len(ids), 4)
            output = table(ids.cuda())
            expected = model.train(ids.tolist(), untrained(ids.cuda()).cpu(), grads)
            torch.testing.assert_close(output.cpu(), expected)
            output.backward(grads.cuda())
    table._table.check()
    assert sorted(table.keys().tolist()) == sorted(model.rows)


def test_growth_keeps_rows_and_counts_its_memory() -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    table = SparseEmbedding(None, 64, optimizer="adam", seed=2, device="cuda")
    for first in range(0, 400_000, 40_000):
        table(torch.arange(first, first + 50_000, device="cuda")).sum().backward()
    assert table.stats().rows_in_use == 410_000
    own = torch.cuda.memory_allocated() - before
    assert table.stats().bytes <= own <= table.stats().bytes * 1.1 + (4 << 20)
    # Rows, state and 32 bytes each, a hash index of at most 43 bytes, and an eighth for growth.
    assert own <= 410_000 * (64 * 12 + 32 + 43) * 1.13 + (64 << 20)
    table._table.check()
    untouched = SparseEmbedding(None, 64, optimizer="adam", seed=2, device="cuda").eval()
    again = copy.deepcopy(table).eval()
    ids = torch.randint(410_000, (1000,), device="cuda")
    assert torch.equal(again(ids), table.eval()(ids))
    assert not torch.equal(untouched(ids), table(ids))
    del table, again
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 4 << 20


def test_tables_live_in_a_pool(pool: MemoryPool) -> None:
    before = pool.stats().live_bytes
    with pool:
        table = SparseEmbedding(None, 32, optimizer="adam", device="cuda")
        table(torch.arange(100_000, device="cuda")).sum().backward()
    assert pool.stats().live_bytes - before >= table.stats().bytes
    table(torch.arange(10, device="cuda")).sum().backward()
    del table
    torch.cuda.synchronize()


@pytest.mark.parametrize("rows", [None, 5000])
def test_tables_move_between_devices(rows) -> None:
    table = SparseEmbedding(rows, 12, optimizer="adam", dtype=torch.int8, seed=4)
    ids = torch.randint(5000, (300,))
    table(ids).sum().backward()
    wanted = table.eval()(ids)
    table.cuda()
    assert torch.equal(table(ids.cuda()).cpu(), wanted)
    table.train()(ids.cuda()).sum().backward()
    state = {name: value.cpu() for name, value in table.state_dict().items()}
    back = SparseEmbedding(rows, 12, optimizer="adam", dtype=torch.int8)
    back.load_state_dict(state)
    assert torch.equal(back.eval()(ids), table.eval()(ids.cuda()).cpu())
    assert torch.equal(pickle.loads(pickle.dumps(table))(ids.cuda()), table(ids.cuda()))
    assert torch.equal(table.cpu()(ids), back(ids))
    with pytest.raises(InvalidArgumentError, match="the ids are on cuda:0, the table is on cpu"):
        table(ids.cuda())


def test_embeddings_convert() -> None:
    plain = nn.EmbeddingBag(1000, 16, mode="mean", device="cuda", sparse=True, padding_idx=2)
    table = SparseEmbeddingBag.from_embedding(plain, optimizer="adam", lr=0.1)
    reference = torch.optim.SparseAdam(plain.parameters(), lr=0.1)
    for _ in range(3):
        ids = torch.randint(1000, (64, 9), device="cuda")
        for module in (plain, table):
            module(ids).square().sum().backward()
        reference.step()
        reference.zero_grad()
    # Adam divides by the magnitude of gradients, and their sums are rounded differently.
    torch.testing.assert_close(table.to_embedding().weight, plain.weight, rtol=1e-3, atol=1e-3)
    assert table.to_embedding().weight.is_cuda


def test_changes_follow_a_table() -> None:
    options = {"optimizer": "adam", "seed": 1, "device": "cuda"}
    table, copied = SparseEmbedding(None, 8, **options), SparseEmbedding(None, 8, **options)
    mark = -1
    for first in (0, 50, 20):
        table(torch.arange(first, first + 60, device="cuda")).sum().backward()
        dump = table.changes(mark)
        mark = int(dump["counters"][1])
        copied.apply_changes({name: value.cpu() for name, value in dump.items()})
    ids = torch.arange(200, device="cuda")
    assert torch.equal(copied.eval()(ids), table.eval()(ids))


def test_ids_outside_a_table_are_errors() -> None:
    table = SparseEmbedding(9, 4, optimizer="sgd", device="cuda")
    with pytest.raises(RowIndexError, match="got id 9, the table has rows 0 to 8"):
        table(torch.tensor([1, 9], device="cuda"))
    assert table.stats().rows_in_use == 0
    table(torch.tensor([1], device="cuda")).sum().backward()
    output = table.eval()(torch.tensor([1, -1], device="cuda"))
    torch.cuda.synchronize()
    assert output[1].isnan().all()
    assert not output[0].isnan().any()
    with pytest.raises(RowIndexError, match="in an earlier lookup, whose output has NaN"):
        table(torch.tensor([1], device="cuda"))
    assert table(torch.tensor([1], device="cuda")).isfinite().all()


def test_offsets_that_do_not_fit_are_errors() -> None:
    bag = SparseEmbeddingBag(9, 4, optimizer="sgd", device="cuda")
    ids = torch.tensor([1, 2, 3], device="cuda")
    for starts in ([1, 2], [0, 2, 1], [0, 4]):
        with pytest.raises(InvalidArgumentError, match="must begin with 0, must not decrease"):
            bag(ids, torch.tensor(starts, device="cuda"))
    output = bag.eval()(ids, torch.tensor([0, 4], device="cuda"))
    torch.cuda.synchronize()
    assert output.isnan().any()
    with pytest.raises(InvalidArgumentError, match="in an earlier lookup"):
        bag(ids, torch.tensor([0], device="cuda"))


def test_a_full_table_says_so() -> None:
    table = SparseEmbedding(None, 16, optimizer="adam", budget="64KiB", device="cuda")
    capacity = table.stats().capacity
    table(torch.arange(capacity, device="cuda")).sum().backward()
    state = table.state_dict()
    with pytest.raises(TableFullError, match="raise budget, or choose when_full='evict_lru'"):
        table(torch.tensor([-1], device="cuda"))
    for name in ("keys", "rows", "exp_avg"):
        assert torch.equal(table.state_dict()[name], state[name])
    assert table.stats().bytes <= 64 << 10


def test_evaluation_does_not_wait_for_the_device() -> None:
    table = SparseEmbeddingBag(1000, 16, optimizer="sgd", device="cuda").eval()
    ids = torch.randint(1000, (64, 3), device="cuda")
    table(ids)
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG_SLEEP_CYCLES)
    start = time.perf_counter()
    table(ids)
    assert time.perf_counter() - start < 0.2
    torch.cuda.synchronize()


def test_streams_take_turns_at_a_table() -> None:
    table = SparseEmbedding(None, 16, optimizer="sgd", lr=1.0, init_std=0.0, device="cuda")
    ids = torch.arange(5000, device="cuda")
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for number in range(12):
        with torch.cuda.stream(streams[number % 3]):
            torch.cuda._sleep(SHORT_SLEEP_CYCLES // 20)
            table(ids + 1000 * number).sum().backward()
    torch.cuda.synchronize()
    found = table.eval()(torch.arange(16_000, device="cuda"))
    times = torch.zeros(16_000)
    for number in range(12):
        times[1000 * number : 1000 * number + 5000] += 1
    assert torch.equal(found.cpu(), -times[:, None].expand(-1, 16))


def test_graphs_capture_evaluation_only() -> None:
    table = SparseEmbedding(None, 16, optimizer="sgd", device="cuda")
    ids = torch.arange(100, device="cuda")
    table(ids).sum().backward()
    table.eval()(ids)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = table(ids)
    ids.add_(50)
    graph.replay()
    assert torch.equal(output, table(ids))
    table.train()
    with pytest.raises(InvalidArgumentError, match="a CUDA graph reads it"):
        table(torch.arange(10_000, device="cuda"))
    table(ids[:50]).sum().backward()
    graph.replay()
    assert torch.equal(output, table.eval()(ids))


def test_training_in_a_graph_is_refused() -> None:
    table = SparseEmbedding(None, 16, optimizer="sgd", device="cuda")
    ids = torch.arange(100, device="cuda")
    table(ids).sum().backward()
    with (
        pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        table(ids)


def test_gradients_that_are_views_and_scaled_losses() -> None:
    tables = [
        SparseEmbedding(None, 4, optimizer="adam", seed=1, device=device)
        for device in ("cpu", "cuda")
    ]
    scaler = torch.amp.GradScaler("cuda", init_scale=64.0)
    ids, values = torch.tensor([1, 2, 2, 7]), torch.randn(17)
    for table, device in zip(tables, ("cpu", "cuda"), strict=True):
        with table.accumulate(scaler=scaler, max_norm=0.5):
            for _ in range(2):
                # Begins 4 bytes after an aligned address.
                grad = (values.to(device) * 64)[1:].view(4, 4)
                table(ids.to(device)).backward(grad)
        with table.accumulate(max_norm=1.0):
            pass
    assert_same_state(*tables, 1e-5)


def test_collections_and_compiled_models_train() -> None:
    tables = SparseEmbeddingCollection(
        {
            "item": SparseEmbedding(None, 4, optimizer="sgd", device="cuda"),
            "word": SparseEmbeddingBag(None, 2, optimizer="sgd", device="cuda"),
        }
    )
    ids = torch.tensor([1, 2], device="cuda")
    found = tables({"item": ids, "word": (ids, torch.zeros(1, dtype=torch.int64, device="cuda"))})
    assert found["word"].shape == (1, 2)
    table = SparseEmbedding(4, 2, optimizer="sgd", lr=1.0, init_std=0.0, device="cuda")
    model = torch.compile(lambda ids: table(ids) * 2, backend="eager")
    model(ids).sum().backward()
    assert table.eval()(ids).tolist() == [[-2, -2], [-2, -2]]
