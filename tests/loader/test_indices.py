"""Shuffled arrays come in torch's order, however their permutation is made."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import vramkit
from vramkit.loader import _indices

COUNT = 30_011
ROWS = TensorDataset(torch.arange(COUNT))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The counts and wanted entries of all permutations that are made in parts."""
    calls: list[tuple[int, int]] = []
    parts = _indices._parts

    def recorded(seed: int, count: int, wanted: int, batch_size: int) -> Any:
        calls.append((count, wanted))
        return parts(seed, count, wanted, batch_size)

    _indices._parts_are_torchs()
    monkeypatch.setattr(_indices, "_parts", recorded)
    return calls


def epochs(kind: Any, dataset: Any, **options: Any) -> list[torch.Tensor]:
    """The batches of two epochs, and what the global generator gives then."""
    torch.manual_seed(3)
    loader = kind(dataset, **options)
    batches = [batch for _ in range(2) for (batch,) in loader]
    return [*batches, torch.rand(1)]


def assert_torchs(dataset: Any, **options: Any) -> None:
    ours, torchs = (epochs(kind, dataset, **options) for kind in (vramkit.DataLoader, DataLoader))
    assert [len(batch) for batch in ours] == [len(batch) for batch in torchs]
    assert torch.equal(torch.cat(ours), torch.cat(torchs))


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"num_workers": 1}], ids=str)
@pytest.mark.parametrize("batch_size", [100, 4096, 5000, COUNT - 1, COUNT, 2 * COUNT])
def test_the_order_is_torchs(
    batch_size: int, options: dict[str, Any], drawn: list[tuple[int, int]]
) -> None:
    assert_torchs(ROWS, batch_size=batch_size, shuffle=True, **options)
    assert set(drawn) == {(COUNT, COUNT)}


def test_a_batch_of_one(drawn: list[tuple[int, int]]) -> None:
    assert_torchs(TensorDataset(torch.arange(4099)), batch_size=1, shuffle=True)
    assert drawn == [(4099, 4099)] * 2


@pytest.mark.parametrize("wanted", [1, 4097, COUNT - 1])
def test_a_part_of_the_permutation(wanted: int, drawn: list[tuple[int, int]]) -> None:
    assert_torchs(ROWS, batch_size=64, sampler=RandomSampler(ROWS, num_samples=wanted))
    assert drawn == [(COUNT, wanted)] * 2


def test_what_torch_draws_itself(drawn: list[tuple[int, int]]) -> None:
    """Several permutations of one generator, the user's generator, and short ones."""
    assert_torchs(ROWS, batch_size=64, sampler=RandomSampler(ROWS, num_samples=2 * COUNT + 5))
    short = TensorDataset(torch.arange(4096))
    assert_torchs(short, batch_size=64, shuffle=True)
    states = []
    for kind in (vramkit.DataLoader, DataLoader):
        generator = torch.Generator().manual_seed(8)
        epochs(kind, ROWS, batch_size=64, sampler=RandomSampler(ROWS, generator=generator))
        states.append(generator.get_state())
    assert torch.equal(*states)
    assert drawn == []


def test_the_first_batch_needs_only_a_part() -> None:
    parts = itertools.islice(_indices._parts(1, 10**6, 10**6, 1000), 8)
    assert [len(part) for part in parts] == [
        5000, 9000, 17_000, 33_000, 66_000, 132_000, 132_000, 132_000
    ]  # fmt: skip


def test_resumes_in_the_epoch(drawn: list[tuple[int, int]]) -> None:
    options = {"batch_size": 500, "shuffle": True}
    torch.manual_seed(3)
    first = vramkit.DataLoader(ROWS, **options)
    iterator = iter(first)
    for _ in range(11):
        next(iterator)
    state = copy.deepcopy(first.state_dict())
    expected = [batch for (batch,) in iterator]
    second = vramkit.DataLoader(ROWS, **options)
    second.load_state_dict(state)
    rest = [batch for (batch,) in second]
    assert torch.equal(torch.cat(rest), torch.cat(expected))
    assert drawn == [(COUNT, COUNT)] * 2


def test_another_algorithm_of_torch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: original(*a, **k).flip(0))
    _indices._parts_are_torchs.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="draws permutations in another way"):
            assert_torchs(ROWS, batch_size=64, shuffle=True)
    finally:
        _indices._parts_are_torchs.cache_clear()


def test_another_default_device_is_torchs_matter() -> None:
    assert _indices._can_be_made_in_parts(COUNT)
    with torch.device("meta"):
        assert not _indices._can_be_made_in_parts(COUNT)
