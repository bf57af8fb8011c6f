"""The binding of permutations: entries are torch's, in parts of any size."""

import random

import pytest
import torch

from vramkit._core import MAX_PERMUTATION, Permutation
from vramkit.errors import InvalidArgumentError

SEEDS = (0, 1, 2**31 + 7, 2**40 + 3, 2**63 - 1, 2**64 - 1)
COUNTS = (0, 1, 2, 3, 5, 623, 624, 625, 1000, *(2**power for power in range(3, 21, 3)), 300_007)


def made(seed: int, count: int, part: int) -> torch.Tensor:
    permutation = Permutation(seed, count)
    entries = torch.full((count,), -1)
    for each in entries.split(part):
        permutation.next(each.data_ptr(), len(each))
    return entries


def torchs(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator()
    # A generator takes negative numbers for those from 2**63 on.
    generator.manual_seed(seed if seed < 2**63 else seed - 2**64)
    assert generator.initial_seed() == seed
    return torch.randperm(count, generator=generator)


@pytest.mark.parametrize("count", COUNTS)
def test_entries_are_torchs(count: int) -> None:
    for seed in SEEDS:
        assert torch.equal(made(seed, count, max(1, count)), torchs(seed, count))


@pytest.mark.parametrize("part", [1, 17, 624, 1000, 4096, 99_999])
def test_parts_may_have_any_size(part: int) -> None:
    assert torch.equal(made(5, 50_021, part), torchs(5, 50_021))


def test_random_counts_and_parts() -> None:
    for seed in range(40):
        choose = random.Random(seed)
        count, part = choose.randrange(40_000), choose.randrange(1, 9_000)
        assert torch.equal(made(seed, count, part), torchs(seed, count)), (seed, count, part)


def test_parts_of_several_permutations_in_turn() -> None:
    permutations = [Permutation(seed, 3000) for seed in range(3)]
    entries = torch.zeros(3, 3000, dtype=torch.int64)
    for at in range(0, 3000, 500):
        for permutation, row in zip(permutations, entries, strict=True):
            permutation.next(row[at:].data_ptr(), 500)
    for seed, row in enumerate(entries):
        assert torch.equal(row, torchs(seed, 3000))


def test_what_is_refused() -> None:
    entries = torch.full((4,), -1)
    permutation = Permutation(1, 3)
    with pytest.raises(InvalidArgumentError, match="has 3 entries left, got a request for 4"):
        permutation.next(entries.data_ptr(), 4)
    assert (entries == -1).all()
    with pytest.raises(InvalidArgumentError, match="out"):
        permutation.next(0, 1)
    for seed, count in ((-1, 3), (2**64, 3), (1, -1)):
        with pytest.raises(InvalidArgumentError, match="must be between"):
            Permutation(seed, count)
    with pytest.raises(InvalidArgumentError, match=f"at most {MAX_PERMUTATION} entries"):
        Permutation(1, MAX_PERMUTATION + 1)
