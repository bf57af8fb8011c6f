"""Batches that follow one another in one worker, each of another kind, arrive as they were made."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.batches import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

import vramkit
from vramkit._core import stream_copy
from vramkit.loader._arena import Arena
from vramkit.loader._layouts import Layouts
from vramkit.loader._slot_writer import SlotWriter
from vramkit.loader._staged import Staged


class _Key:
    """Equal to nothing else, and not to be unpickled, or not to be pickled."""

    def __init__(self, way: str) -> None:
        self.way = way

    def __reduce__(self) -> Any:
        if self.way == "unpicklable":
            raise TypeError("this key cannot be pickled")
        return _refuse, ()


def _refuse() -> Any:
    raise ValueError("this key cannot be unpickled")


def _batches_of(makers: list[Callable[[], Any]]) -> list[Any]:
    """What a worker's batches are in this process; an exception's first line instead of a batch."""
    loader: Any = vramkit.DataLoader(
        list(range(len(makers))),  # type: ignore[arg-type]
        batch_size=1,
        num_workers=1,
        collate_fn=lambda indices: makers[indices[0]](),
    )
    got: list[Any] = []
    with loader:
        batches = iter(loader)
        for _ in makers:
            try:
                got.append(next(batches))
            except (TypeError, ValueError) as err:
                got.append(type(err))
    return got


@pytest.mark.parametrize(("way", "error"), [("unpicklable", TypeError), ("other", ValueError)])
def test_a_layout_that_does_not_travel_shifts_no_other(way: str, error: type) -> None:
    def of_key() -> Any:
        return {_KEYS[way]: torch.zeros(3)}

    def of(count: int) -> Any:
        return [torch.full((count,), float(count))]

    makers = [lambda: of(2), of_key, lambda: of(3), of_key, lambda: of(2), lambda: of(3)]
    got = _batches_of(makers)
    assert got[1] is error
    assert got[3] is error
    assert_same([got[at] for at in (0, 2, 4, 5)], [of(2), of(3), of(2), of(3)])


_KEYS = {way: _Key(way) for way in ("unpicklable", "other")}


def test_keys_that_are_equal_and_not_the_same() -> None:
    keys: list[Any] = [1, True, 1.0, "1"]
    got = _batches_of([lambda key=key: {key: torch.ones(2)} for key in keys])  # type: ignore[misc]
    assert [type(next(iter(batch))) for batch in got] == [int, bool, float, str]


def test_a_batch_that_contains_itself() -> None:
    def make() -> Any:
        batch: list[Any] = [torch.ones(2)]
        batch.append(batch)
        return batch

    (got,) = _batches_of([make])
    assert got[1] is got
    assert torch.equal(got[0], torch.ones(2))


@pytest.mark.parametrize("dimensions", [32, 33, 64])
def test_tensors_of_many_dimensions(dimensions: int) -> None:
    shape = (2,) * 3 + (1,) * (dimensions - 3)
    (got,) = _batches_of([lambda: torch.arange(8.0).view(shape)])
    assert got.shape == shape
    assert got.flatten().tolist() == list(range(8))


class _TakesABatchWhenUnpickled:
    def __reduce__(self) -> Any:
        return _take_a_batch, ()


def _take_a_batch() -> Any:
    (got,) = _batches_of([lambda: [torch.full((2,), 7.0), {1}]])
    return got[0]


def test_unpickling_a_batch_may_take_one_of_another_loader() -> None:
    (got,) = _batches_of([lambda: [torch.ones(2), _TakesABatchWhenUnpickled(), torch.zeros(3)]])
    assert_same(got, [torch.ones(2), torch.full((2,), 7.0), torch.zeros(3)])


_leaves = st.builds(
    lambda shape, dtype: torch.ones(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.int64, torch.bool]),
)
_plain = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["a", "b", 1, True, 0]), inner, min_size=1, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_plain, min_size=1, max_size=6))
def test_plain_batches_travel_by_number(batches: list[Any]) -> None:
    described: list[Any] = []
    with Arena(1 << 30) as arena:
        writer = SlotWriter(arena.fd, 1 << 20, stream_copy)
        layouts = Layouts(writer)
        arrived = []
        for batch in batches * 2:
            lease = arena.lease()
            writer.begin(lease.slot.index, lease.slot.capacity)
            placed = layouts.place(batch)
            assert placed is not None
            layout, is_new = placed
            assert is_new == (layout.number == len(described))
            if is_new:
                described.append(pickle.loads(layout.pickled))
            if writer.capacity:
                arena.map(lease.slot, writer.capacity)
            arrived.append(Staged(lease, described[layout.number], writer.used_bytes).unpack())
        assert_same(arrived, batches * 2)
        del arrived, lease


def test_batches_of_empty_tensors() -> None:
    def of(count: int, mark: int) -> Any:
        return {
            "boxes": torch.full((count, 4), float(mark)),
            "labels": torch.full((count,), mark),
            "scores": torch.full((count,), float(mark)),
            "masks": torch.full((count, 8, 8), mark),
        }

    counts = [0, 3, 2, 0, 3, 2, 3, 0]
    got = _batches_of(
        [lambda at=at, count=count: of(count, at) for at, count in enumerate(counts)]  # type: ignore[misc]
    )
    assert_same(got, [of(count, at) for at, count in enumerate(counts)])


class _Named(str):
    """A text with something of its own."""

    __slots__ = ("mark",)


def _named(mark: int) -> str:
    name = _Named("x")
    name.mark = mark
    return name


def test_keys_of_any_kind_are_each_batch_s_own() -> None:
    pairs: list[tuple[Any, Any]] = [((1,), (True,)), (0.0, -0.0), (_named(1), _named(2))]
    for pair in pairs:
        got = _batches_of([lambda key=key: {key: torch.ones(2)} for key in pair * 2])  # type: ignore[misc]
        keys = [next(iter(batch)) for batch in got]
        assert [repr(key) for key in keys] == [repr(key) for key in pair * 2]
        assert [getattr(key, "mark", 0) for key in keys] == [
            getattr(key, "mark", 0) for key in pair * 2
        ]
