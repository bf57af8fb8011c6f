"""An epoch goes on exactly where another loader left it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import datasets as d
from helpers.batches import assert_same, seed_all
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, TensorDataset

import vramkit
from vramkit.errors import InvalidArgumentError
from vramkit.loader._resume import Done

DATA = {
    "pixels": lambda: d.Pixels(23),
    "tensors": lambda: TensorDataset(torch.arange(23.0)),
    "large": lambda: TensorDataset(torch.arange(23 * 9000).view(23, 9000)),
}


def _whole(dataset: Any, **options: Any) -> list[Any]:
    seed_all(5)
    loader = vramkit.DataLoader(dataset, **options)
    return [list(loader), list(loader)]


def _in_two(dataset: Any, at: int, then: dict[str, Any], **options: Any) -> list[Any]:
    seed_all(5)
    first = vramkit.DataLoader(dataset, **options)
    iterator = iter(first)
    batches = [next(iterator) for _ in range(at)]
    state = copy.deepcopy(first.state_dict())
    outside = torch.get_rng_state()
    seed_all(99)
    second = vramkit.DataLoader(dataset, **(options | then))
    second.load_state_dict(state)
    torch.set_rng_state(outside)
    batches += list(second)
    return [batches, list(second)]


@pytest.mark.parametrize("at", [1, 4, 6])
@pytest.mark.parametrize("data", DATA)
def test_resumes_in_the_epoch(data: str, at: int) -> None:
    options = {"batch_size": 4, "shuffle": True}
    assert_same(_in_two(DATA[data](), at, {}, **options), _whole(DATA[data](), **options))


@pytest.mark.parametrize("data", DATA)
def test_resumes_before_the_first_batch(data: str) -> None:
    options = {"batch_size": 4, "shuffle": True}
    assert_same(_in_two(DATA[data](), 0, {}, **options)[0], _whole(DATA[data](), **options)[0])


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 1)])
@pytest.mark.parametrize("data", ["pixels", "tensors"])
def test_another_number_of_workers(data: str, before: int, after: int) -> None:
    options = {"batch_size": 4, "shuffle": True, "num_workers": before}
    then = {"num_workers": after}
    assert_same(_in_two(DATA[data](), 3, then, **options), _whole(DATA[data](), **options))


@pytest.mark.parametrize("workers", [0, 2])
def test_streams(workers: int) -> None:
    options = {"batch_size": 2, "num_workers": workers}
    assert_same(_in_two(d.Stream(), 2, {}, **options), _whole(d.Stream(), **options))


def test_a_distributed_sampler() -> None:
    def make() -> dict[str, Any]:
        sampler = DistributedSampler(range(23), num_replicas=2, rank=1, shuffle=True, seed=4)
        sampler.set_epoch(3)
        return {"sampler": sampler, "batch_size": 3}

    assert_same(_in_two(d.Pixels(23), 2, make(), **make()), _whole(d.Pixels(23), **make()))


@pytest.mark.parametrize("workers", [0, 1])
def test_generators(workers: int) -> None:
    def make() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(8)
        sampler = RandomSampler(range(23), generator=torch.Generator().manual_seed(1))
        return {"sampler": sampler, "batch_size": 3, "generator": generator, "num_workers": workers}

    assert_same(_in_two(d.Pixels(23), 2, make(), **make()), _whole(d.Pixels(23), **make()))


def test_persistent_workers_resume() -> None:
    options = {"batch_size": 4, "shuffle": True, "num_workers": 1, "persistent_workers": True}
    loader = vramkit.DataLoader(d.Pixels(), **options)
    list(loader)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    rest = list(iterator)
    other = vramkit.DataLoader(d.Pixels(), **options)
    list(other)
    other.load_state_dict(state)
    assert_same(list(other), rest)


def test_a_state_can_be_saved(tmp_path: Any) -> None:
    loader = vramkit.DataLoader(d.Pixels(), batch_size=4, shuffle=True)
    iterator = iter(loader)
    next(iterator)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    loader.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(list(loader), list(iterator))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 0}, "which has version 1: got version 0"),
        ({"batches_yielded": -1}, "batches_yielded must be a number of batches, got -1"),
    ],
)
def test_a_wrong_state(change: dict[str, Any], text: str) -> None:
    loader = vramkit.DataLoader(d.Pixels())
    with pytest.raises(InvalidArgumentError, match=text):
        loader.load_state_dict(loader.state_dict() | change)


@pytest.mark.parametrize(
    ("state", "text"), [({}, "got a dict without one"), (None, "got a NoneType")]
)
def test_no_state_at_all(state: Any, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        vramkit.DataLoader(d.Pixels()).load_state_dict(state)


def test_a_stream_needs_as_many_workers() -> None:
    state = vramkit.DataLoader(d.Stream()).state_dict()
    with pytest.raises(InvalidArgumentError, match="the state is of 0 workers and this loader"):
        vramkit.DataLoader(d.Stream(), num_workers=1).load_state_dict(state)


@pytest.mark.parametrize(
    ("dataset", "batch_size", "text"),
    [
        (TensorDataset(torch.arange(12)), 4, "a loader with batch_size=2 and this one has"),
        (TensorDataset(torch.arange(6)), 2, "a loader with samples=12 and this one has samples=6"),
        (d.Stream(), 2, "a loader with samples=12 and this one has samples=None"),
    ],
)
def test_a_state_of_other_batches(dataset: Any, batch_size: int, text: str) -> None:
    loader = vramkit.DataLoader(TensorDataset(torch.arange(12)), batch_size=2)
    next(iter(loader))
    other = vramkit.DataLoader(dataset, batch_size=batch_size)
    with pytest.raises(InvalidArgumentError, match=text):
        other.load_state_dict(loader.state_dict())
    # Between epochs nothing is counted.
    list(loader)
    other.load_state_dict(loader.state_dict())


def test_a_data_set_without_a_length_resumes() -> None:
    class Endless(torch.utils.data.Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    def loader() -> Any:
        return vramkit.DataLoader(Endless(), batch_size=2, sampler=range(6))

    first = loader()
    next(iter(first))
    second = loader()
    second.load_state_dict(first.state_dict())
    assert [batch.tolist() for batch in second] == [[2, 3], [4, 5]]


@pytest.mark.parametrize("workers", ["process", "thread"])
@pytest.mark.parametrize("then", [{}, {"in_order": True}, {"num_workers": 0}], ids=str)
def test_batches_that_came_before_their_turn(workers: str, then: dict[str, Any]) -> None:
    options = {"batch_size": 2, "shuffle": True, "num_workers": 2, "in_order": False}
    options |= {"prefetch_factor": 1, "workers": workers}
    if then.get("num_workers") == 0:
        then = then | {"prefetch_factor": None, "workers": "process"}
    loader = vramkit.DataLoader(d.Uneven(24), **options)
    iterator, seen = iter(loader), []
    while True:
        seen += next(iterator).tolist()
        state = loader.state_dict()
        if state["yielded_ahead"]:
            break
    assert state["batches_yielded"] == len(seen) // 2
    second = vramkit.DataLoader(d.Uneven(24), **(options | then))
    second.load_state_dict(state)
    iterator = iter(second)
    for _ in range(3):
        seen += next(iterator).tolist()
    third = vramkit.DataLoader(d.Uneven(24), **(options | then))
    third.load_state_dict(second.state_dict())
    seen += [each for batch in third for each in batch.tolist()]
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_batch_that_raised_is_not_asked_for_again(workers: int, device: str | None) -> None:
    def make() -> Any:
        return vramkit.DataLoader(d.Alternating(), num_workers=workers, device=device)

    def go_on(iterator: Any, count: int) -> list[int]:
        seen: list[int] = []
        while len(seen) < count:
            try:
                seen.append(int(next(iterator)[0, 0]))
            except ValueError:
                seen.append(-1)
            except StopIteration:
                break
        return seen

    whole = [0, 1, -1, 3, 4, -1, 6, 7]
    for at in range(1, 8):
        first, second = make(), make()
        seen = go_on(iter(first), at)
        assert seen == whole[:at]
        assert first.state_dict()["batches_yielded"] == at
        second.load_state_dict(first.state_dict())
        assert seen + go_on(iter(second), 99) == whole


def test_a_timeout_takes_no_batch() -> None:
    loader = vramkit.DataLoader(d.Uneven(4, seconds=0.6), num_workers=1, timeout=0.3)
    iterator, timeouts = iter(loader), 0
    while True:
        try:
            assert next(iterator).tolist() == [0]
            break
        except RuntimeError:
            timeouts += 1
            assert loader.state_dict()["batches_yielded"] == 0
    assert timeouts
    assert loader.state_dict()["batches_yielded"] == 1


def test_a_stream_in_any_order_cannot_go_on() -> None:
    loader = vramkit.DataLoader(d.Stream(), batch_size=2, num_workers=2, in_order=False)
    next(iter(loader))
    with pytest.raises(InvalidArgumentError, match="use in_order=True, or give the dataset"):
        loader.load_state_dict(loader.state_dict())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_done_against_a_list(data: Any) -> None:
    left = list(range(data.draw(st.integers(0, 12))))
    done = Done(0)
    total = len(left)
    while left:
        # Each number is one of this part's: the positions that were left when it began.
        part = list(left)
        count = data.draw(st.integers(1, len(part)))
        for number in data.draw(st.permutations(range(len(part))))[:count]:
            done.add(number)
            left.remove(part[number])
            assert done.total == total - len(left)
        done = Done(done.total, done.ahead)
        assert list(done.left(range(total))) == left


class _Drawn:
    """A sampler with a state: how many orders it has drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Any:
        self.drawn += 1
        return iter(
            torch.randperm(12, generator=torch.Generator().manual_seed(self.drawn)).tolist()
        )

    def __len__(self) -> int:
        return 12

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["sampler", "batch_sampler", "alone"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_sampler_with_a_state(way: str, workers: int, at: int) -> None:
    def make() -> Any:
        options: dict[str, Any] = {
            "sampler": {"sampler": _Drawn(), "batch_size": 4},
            "batch_sampler": {"batch_sampler": BatchSampler(_Drawn(), 4, drop_last=False)},
            "alone": {"sampler": _Drawn(), "batch_size": None},
        }[way]
        return vramkit.DataLoader(d.Listed(list(range(12))), num_workers=workers, **options)

    first = make()
    list(first)
    iterator = iter(first)
    for _ in range(at):
        next(iterator)
    state = first.state_dict()
    second = make()
    second.load_state_dict(state)
    assert_same([list(second), list(second)], [list(iterator), list(first)])


def test_a_state_that_was_loaded_and_not_used_yet_is_kept() -> None:
    def make() -> Any:
        return vramkit.DataLoader(TensorDataset(torch.arange(10)), batch_size=2, shuffle=True)

    first = make()
    iterator = iter(first)
    next(iterator)
    second, third = make(), make()
    second.load_state_dict(first.state_dict())
    third.load_state_dict(second.state_dict())
    assert_same(list(third), list(iterator))


@pytest.mark.parametrize("shuffled_by", ["global", "own"])
def test_between_epochs_of_persistent_workers(shuffled_by: str) -> None:
    def make() -> Any:
        generator = None if shuffled_by == "global" else torch.Generator().manual_seed(3)
        return vramkit.DataLoader(
            d.Listed(list(range(12))),
            batch_size=4,
            shuffle=True,
            num_workers=1,
            persistent_workers=True,
            generator=generator,
        )

    seed_all(4)
    first = make()
    list(first)
    state, outside = first.state_dict(), torch.get_rng_state()
    want = [list(first), list(first)]
    second = make()
    second.load_state_dict(state)
    torch.set_rng_state(outside)
    assert_same([list(second), list(second)], want)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_before_the_first_batch_goes_to_workers(workers: int) -> None:
    options = {"batch_size": 4, "shuffle": True}
    then = {"num_workers": workers}
    assert_same(_in_two(d.Pixels(23), 0, then, **options), _whole(d.Pixels(23), **options))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"random": {}}, "'global' among them"),
        ({"random": None}, "got NoneType"),
        ({"batches_yielded": 99}, "99 batches yielded, and an epoch of this loader has 11"),
        ({"yielded_ahead": [1, 2, 3]}, "must list some of the 1 batches"),
    ],
)
def test_a_damaged_state(change: dict[str, Any], text: str) -> None:
    loader = vramkit.DataLoader(d.Pixels())
    next(iter(loader))
    with pytest.raises(InvalidArgumentError, match=text):
        loader.load_state_dict(loader.state_dict() | change)


def test_a_state_without_its_sampler() -> None:
    loader = vramkit.DataLoader(d.Pixels())
    state = loader.state_dict()
    del state["sampler"]
    with pytest.raises(InvalidArgumentError, match="the state has no sampler"):
        loader.load_state_dict(state)
