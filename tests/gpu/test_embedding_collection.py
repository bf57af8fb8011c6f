"""Collections on a GPU: what their tables do one after the other, bit for bit, without waiting."""

import random
import time

import pytest
import torch
from helpers.gpu import LONG_SLEEP_CYCLES, SHORT_SLEEP_CYCLES
from helpers.seeds import stress_seed
from helpers.tables import Histories, comparable, random_tables

from vramkit.errors import InvalidArgumentError, RowIndexError, TableFullError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection


def _pair(chance):
    """Build two equal tables on the GPU."""

    def build(make):
        with torch.device("cuda"):
            return make()

    first = random_tables(chance, build)[1]
    config = first._table.config
    assert config.device.type == "cuda"
    options = {
        "optimizer": config.optimizer,
        "dtype": config.dtype,
        "padding_idx": first.padding_idx,
        "max_norm": first.max_norm,
        "norm_type": first.norm_type,
        "scale_grad_by_freq": first.scale_grad_by_freq,
        "seed": config.seed,
        "init_std": config.init_std,
        "device": "cuda",
    }
    if config.optimizer.endswith("adagrad"):
        options["initial_accumulator_value"] = config.initial_accumulator_value
    if isinstance(first, SparseEmbeddingBag):
        options |= {"mode": first.mode, "include_last_offset": first.include_last_offset}
    return [first, type(first)(first.num_embeddings, first.embedding_dim, **options)]


@pytest.mark.parametrize("number", range(6))
def test_random_histories_are_those_of_the_tables_alone(number) -> None:
    seed = stress_seed() + number
    chance = random.Random(seed)
    torch.manual_seed(seed % 2**63)
    for _ in range(3):
        pairs = [_pair(chance) for _ in range(chance.randint(1, 6))]
        histories = Histories(chance, pairs, "cuda")
        for _ in range(4):
            histories.step()
        histories.check()


def test_many_large_tables_train_as_alone() -> None:
    # More than one kernel's parameters hold, and rows that occur in hundreds of places.
    sides = [
        {
            str(i): SparseEmbedding(None, (64, 128)[i % 2], optimizer="adam", seed=i, device="cuda")
            for i in range(40)
        }
        for _ in range(2)
    ]
    collection = SparseEmbeddingCollection(sides[0])
    for _ in range(2):
        ids = {
            name: torch.where(
                torch.rand(20_000, device="cuda") < 0.1,
                7,
                torch.randint(10_000, (20_000,), device="cuda"),
            )
            for name in sides[0]
        }
        found = collection(ids)
        alone = {name: table(ids[name]) for name, table in sides[1].items()}
        grads = [torch.randn_like(rows) for rows in found.values()]
        for outputs in (found, alone):
            torch.autograd.backward(list(outputs.values()), grads)
        assert all(torch.equal(rows, alone[name]) for name, rows in found.items())
    for name, table in sides[0].items():
        state = sides[1][name].state_dict()
        for part, value in comparable(table).items():
            assert torch.equal(value, state[part]), (name, part)


@pytest.mark.parametrize(
    ("bad", "count", "error"), [("fixed", 10, RowIndexError), ("full", 3000, TableFullError)]
)
def test_an_error_in_one_table_gives_no_table_rows(bad, count, error) -> None:
    options = {"optimizer": "sgd", "device": "cuda"}
    tables = {
        "first": SparseEmbedding(None, 4, **options),
        "fixed": SparseEmbedding(9, 4, **options),
        "full": SparseEmbedding(None, 4, budget="16KiB", **options),
    }
    collection = SparseEmbeddingCollection(tables)
    good = {name: torch.tensor([1, 2], device="cuda") for name in tables}
    sum(rows.sum() for rows in collection(good).values()).backward()
    fresh = {name: torch.tensor([3, 4], device="cuda") for name in tables}
    with pytest.raises(error):
        collection(fresh | {bad: torch.arange(count, device="cuda")})
    assert [table.stats().rows_in_use for table in tables.values()] == [2, 2, 2]
    collection(fresh)
    assert [table.stats().rows_in_use for table in tables.values()] == [4, 4, 4]


def _four(**options):
    return SparseEmbeddingCollection(
        {
            str(i): SparseEmbedding(None, 16, optimizer="sgd", device="cuda", **options)
            for i in range(4)
        }
    )


def test_streams_take_turns_at_the_tables() -> None:
    tables = _four(lr=1.0, init_std=0.0)
    streams = [torch.cuda.Stream() for _ in range(3)]
    ids = torch.arange(3000, device="cuda")
    torch.cuda.synchronize()
    for number in range(9):
        with torch.cuda.stream(streams[number % 3]):
            torch.cuda._sleep(SHORT_SLEEP_CYCLES // 20)
            if number % 2:
                tables.tables["1"](ids).sum().backward()
            else:
                sum(rows.sum() for rows in tables(dict.fromkeys("0123", ids)).values()).backward()
    torch.cuda.synchronize()
    found = tables.eval()(dict.fromkeys("0123", ids))
    for name, times in zip("0123", (5, 9, 5, 5), strict=True):
        assert torch.equal(found[name], torch.full_like(found[name], -times))


def test_evaluation_does_not_wait_for_the_device() -> None:
    tables = _four().eval()
    inputs = dict.fromkeys("0123", torch.arange(100, device="cuda"))
    tables(inputs)
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG_SLEEP_CYCLES)
    start = time.perf_counter()
    tables(inputs)
    assert time.perf_counter() - start < 0.2
    torch.cuda.synchronize()


def test_graphs_capture_evaluation() -> None:
    tables = _four()
    ids = torch.arange(100, device="cuda")
    inputs = dict.fromkeys("0123", ids)
    sum(rows.sum() for rows in tables(inputs).values()).backward()
    tables.eval()(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = tables(inputs)
    ids.add_(50)
    graph.replay()
    for name, rows in tables(inputs).items():
        assert torch.equal(outputs[name], rows)
    with pytest.raises(InvalidArgumentError, match="a CUDA graph reads it"):
        tables.train()(dict.fromkeys("0123", torch.arange(10_000, device="cuda")))


def test_compiled_evaluation_is_one_graph() -> None:
    tables = _four()
    ids = torch.arange(100, device="cuda")
    sum(rows.sum() for rows in tables(dict.fromkeys("0123", ids)).values()).backward()
    tables.eval()

    def model(ids):
        return sum(rows * 2 for rows in tables(dict.fromkeys("0123", ids)).values())

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), model(ids))
