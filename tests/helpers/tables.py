"""A dictionary that behaves as a table with a fused optimizer must; histories of two tables."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vramkit.nn import SparseEmbedding, SparseEmbeddingBag, SparseEmbeddingCollection

# What one rounding of a row type may differ by, where two sums differ in their last bits.
_TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.int8: 0.25}
_ID_SPACE = 300
# What a state dict has once.
_OF_ALL_ROWS = ("counters", "init_std", "history")


class DictTable:
    """Rows by id, updated by SGD one id at a time; evicts the least recently used."""

    def __init__(self, lr: float, capacity: int | None = None) -> None:
        self.rows: dict[int, Tensor] = {}
        self.used: dict[int, int] = {}
        self.clock = 0
        self.lr, self.capacity = lr, capacity

    def train(self, ids: list[int], initial: Tensor, grads: Tensor) -> Tensor:
        """Return the rows before the update by ``grads``; ``initial`` has rows for fresh ids."""
        self.clock += 1
        distinct = set(ids)
        for key in distinct & set(self.rows):
            self.used[key] = self.clock
        fresh = distinct - set(self.rows)
        while self.capacity is not None and len(self.rows) + len(fresh) > self.capacity:
            victim = min(self.rows, key=lambda key: self.used[key])
            del self.rows[victim], self.used[victim]
        for position, key in enumerate(ids):
            if key in fresh and key not in self.rows:
                self.rows[key] = initial[position].clone()
                self.used[key] = self.clock
        output = torch.stack([self.rows[key] for key in ids])
        for key, grad in zip(ids, grads, strict=True):
            self.rows[key] = self.rows[key] - self.lr * grad
        return output


def random_placement(chance: random.Random, row_bytes: int) -> dict[str, Any]:
    """Return arguments that put rows into host memory, some or all of them."""
    budget = 6000 + row_bytes * chance.choice([0, 0, 10, 100])
    return chance.choice(
        [
            {"placement": "host"},
            {"placement": "cached", "budget": budget},
            {"placement": "cached", "budget": budget},
            {"when_full": "spill", "budget": budget},
        ]
    )


def random_tables(
    chance: random.Random, make: Callable[[Callable[[], Any]], Any], *, placed: bool = False
) -> list[Any]:
    """Build a table on the CPU, and one that ``make`` builds from the same arguments.

    If it is ``placed``, the second has rows in host memory.
    """
    dtype = chance.choice(list(_TOLERANCES))
    optimizer: Any = chance.choice(["sgd", "adagrad", "rowwise_adagrad", "adam"])
    bag = chance.random() < 0.6
    mode: Any = chance.choice(["sum", "mean", "max"])
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "lr": 0.05,
        "dtype": dtype,
        "padding_idx": chance.choice([None, 3]),
        "max_norm": chance.choice([None, None, None, 1.5]),
        "norm_type": chance.choice([2.0, 1.0, 3.0, float("inf")]),
        "scale_grad_by_freq": chance.random() < 0.2 and not (bag and mode == "max"),
        "seed": chance.getrandbits(40),
        "init_std": chance.choice([1.0, 0.1]),
    }
    dim = chance.choice([1, 3, 4, 6, 8, 16, 31, 32, 64, 128, 132, 260])
    if bag and mode == "max" and (dim == 1 or options["norm_type"] == float("inf")):
        # Rows at the limit would tie in their largest element, and rounding would decide.
        options["max_norm"] = None
    if optimizer in ("adagrad", "rowwise_adagrad"):
        options["initial_accumulator_value"] = 0.1
    rows = chance.choice([None, _ID_SPACE])
    if bag:
        options |= {"mode": mode, "include_last_offset": chance.random() < 0.5}
    kind: Any = SparseEmbeddingBag if bag else SparseEmbedding
    where = random_placement(chance, 12 * dim + 100) if placed else {}
    return [kind(rows, dim, **options), make(lambda: kind(rows, dim, **options, **where))]


def _random_ids(chance: random.Random, count: int) -> Tensor:
    ids = torch.randint(chance.choice([5, 50, _ID_SPACE]), (count,))
    if chance.random() < 0.3:
        # One id in most places: its gradient is summed in many parts.
        ids = torch.where(torch.rand(count) < 0.9, chance.randrange(_ID_SPACE), ids)
    return ids.to(chance.choice([torch.int64, torch.int32]))


def random_inputs(chance: random.Random, table: Any) -> list[Tensor | None]:
    """Draw the arguments of a table's forward."""
    count = chance.choice([1, 7, 40, 1500])
    if isinstance(table, SparseEmbedding):
        return [_random_ids(chance, count)]
    weighted = table.mode == "sum" and chance.random() < 0.5
    if chance.random() < 0.4:
        ids = _random_ids(chance, 4 * count).view(count, 4)
        return [ids, None, torch.rand(ids.shape) if weighted else None]
    bags = chance.choice([1, 3, 100])
    starts = sorted([0, *(chance.randint(0, count) for _ in range(bags))])
    offsets = torch.tensor(starts + ([count] if table.include_last_offset else []))
    return [_random_ids(chance, count), offsets, torch.rand(count) if weighted else None]


def assert_same_history(
    chance: random.Random, first: Any, second: Any, device: str, *, placed: bool = False
) -> None:
    """Train two tables alike, the second on ``device``; their outputs and states are the same.

    If it is ``placed``, its rows may be in other slots, and batches to come are announced.
    """
    tolerance = _TOLERANCES[first._table.config.dtype]
    for _ in range(5):
        inputs = random_inputs(chance, first)
        training = chance.random() < 0.8
        outputs, weights = [], []
        for table, place in ((first, "cpu"), (second, device)):
            table.train(training)
            given = [None if part is None else part.to(place, copy=True) for part in inputs]
            if len(given) == 3 and given[2] is not None:
                given[2].requires_grad_()
                weights.append(given[2])
            outputs.append(table(*given))
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(outputs[1].cpu(), outputs[0], **close)
        if placed and chance.random() < 0.5:
            # Rows move between forward and backward.
            second.prefetch(_random_ids(chance, chance.choice([1, 40, 700])).to(device))
        if outputs[0].requires_grad:
            grad = torch.randn_like(outputs[0])
            for output in outputs:
                output.backward(grad.to(output.device))
        if len(weights) == 2 and weights[0].grad is not None:
            torch.testing.assert_close(weights[1].grad.cpu(), weights[0].grad, rtol=1e-4, atol=1e-3)
    assert_same_state(first, second, tolerance, placed=placed)


class Histories:
    """Trains tables in one collection, and equal tables one by one: all bits are the same."""

    def __init__(self, chance: random.Random, pairs: list[Any], device: str) -> None:
        self.chance, self.device, self.pairs = chance, device, pairs
        names = [str(number) for number in range(len(pairs))]
        shared = chance.choices(names, k=chance.randint(0, 2))
        self.features = {f"f{i}": name for i, name in enumerate([*names, *shared])}
        tables = {name: pair[0] for name, pair in zip(names, pairs, strict=True)}
        self.collection = SparseEmbeddingCollection(tables, features=self.features)

    def step(self) -> None:
        """Set both sides up alike, look up, and train if there is something to train."""
        for pair in self.pairs:
            training, frozen = self.chance.random() < 0.85, self.chance.random() < 0.1
            rate = self.chance.choice([0.05, 0.1])
            for table in pair:
                table.train(training).requires_grad_(not frozen)
                table.lr = rate
        inputs, copies = self._inputs()
        with torch.set_grad_enabled(self.chance.random() < 0.9):
            joint = self.collection(inputs)
            alone = {
                feature: self.pairs[int(name)][1](*copies[feature])
                for feature, name in self.features.items()
            }
        assert list(joint) == list(alone)
        for feature, output in joint.items():
            assert torch.equal(output, alone[feature]), feature
            assert output.requires_grad == alone[feature].requires_grad
        self._train(joint, alone)
        for feature, given in inputs.items():
            for part, other in zip(given, copies[feature], strict=True):
                if part is not None and part.grad is not None:
                    assert torch.equal(part.grad, other.grad)

    def _inputs(self) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        inputs: dict[str, list[Any]] = {}
        for feature, name in self.features.items():
            drawn = random_inputs(self.chance, self.pairs[int(name)][0])
            inputs[feature] = [None if part is None else part.to(self.device) for part in drawn]
        copies = {
            feature: [None if part is None else part.clone() for part in given]
            for feature, given in inputs.items()
        }
        names = list(self.features.values())
        for feature, given in inputs.items():
            # Lookups of features that share a table may scale the rows of each other.
            lone = names.count(self.features[feature]) == 1
            if len(given) == 3 and given[2] is not None and lone:
                given[2].requires_grad_(), copies[feature][2].requires_grad_()
        return inputs, copies

    def _train(self, joint: dict[str, Tensor], alone: dict[str, Tensor]) -> None:
        used = [
            feature
            for feature, output in joint.items()
            if output.requires_grad and self.chance.random() < 0.9
        ]
        if not used:
            return
        grads = [torch.randn_like(joint[feature]) for feature in used]
        limit = self.chance.choice([None, None, 0.7])
        with contextlib.ExitStack() as stack:
            for pair in self.pairs:
                if self.chance.random() < 0.3:
                    for table in pair:
                        stack.enter_context(table.accumulate(max_norm=limit))
            for outputs in (joint, alone):
                torch.autograd.backward([outputs[feature] for feature in used], grads)

    def check(self) -> None:
        """The tables hold the same."""
        for first, second in self.pairs:
            assert first.stats() == second.stats()
            state = second.state_dict()
            for name, value in comparable(first).items():
                assert torch.equal(value, state[name]), name
            first._table.check()


def comparable(table: nn.Module) -> dict[str, Tensor]:
    """Return a state dict without the history, which tables that train alike do not share."""
    return {name: value for name, value in table.state_dict().items() if "history" not in name}


def assert_same_state(first: Any, second: Any, tolerance: float, *, placed: bool = False) -> None:
    """The tables have the same rows in the same slots, used equally often.

    If the second is ``placed``, its rows may be in other slots.
    """
    states = [comparable(table) for table in (first, second)]
    if placed:
        states = [sorted_by_key(state) for state in states]
    for name, expected in states[0].items():
        wanted, found = expected.cpu(), states[1][name].cpu()
        if name in ("keys", "stamps", "counters"):
            assert torch.equal(found, wanted), name
        elif name == "rows" and wanted.dtype is torch.int8:
            scales = [state["scales"].cpu()[:, None] for state in states]
            torch.testing.assert_close(
                found * scales[1], wanted * scales[0], rtol=tolerance, atol=tolerance
            )
        else:
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    for table in (first, second):
        table._table.check()


def sorted_by_key(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose rows are in the order of their keys."""
    order = state["keys"].argsort()
    return {
        name: value if name in _OF_ALL_ROWS else value[order.to(value.device)]
        for name, value in state.items()
    }


def assert_evicts_alike(chance: random.Random, first: Any, second: Any, device: str) -> None:
    """Two tables with a budget give up the same rows, also of those used equally."""
    capacity = first.stats().capacity
    assert second.stats().capacity == capacity
    for _ in range(30):
        ids = torch.randint(3 * capacity, (chance.randint(1, capacity),))
        outputs = [first(ids), second(ids.to(device))]
        torch.testing.assert_close(outputs[1].cpu(), outputs[0], rtol=1e-5, atol=1e-5)
        # One pass in two has an eviction between forward and backward.
        if chance.random() < 0.5:
            others = torch.randint(3 * capacity, (capacity // 2,))
            first(others), second(others.to(device))
        for output in outputs:
            output.sum().backward()
    assert first.stats().evictions == second.stats().evictions > 0
    assert_same_state(first, second, 1e-5)
