"""A dump is applied only to the state that it continues."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.tables import comparable

from vramkit.errors import InvalidArgumentError
from vramkit.nn import SparseEmbedding

pytestmark = pytest.mark.usefixtures("tables")


def _trained_on(table: SparseEmbedding, *ids: int) -> SparseEmbedding:
    table(torch.tensor(ids)).sum().backward()
    return table


def _sgd(seed: int = 1) -> SparseEmbedding:
    return SparseEmbedding(None, 4, optimizer="sgd", lr=0.1, seed=seed)


def _emptied(table: SparseEmbedding) -> None:
    table.reset_parameters()
    _trained_on(table, 0, 1, 2, 3)


def _rolled_back(table: SparseEmbedding) -> None:
    state = table.state_dict()
    _trained_on(table, 3)
    table.load_state_dict(state)
    _trained_on(table, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: _trained_on(table, 3),
        lambda table: table.load_state_dict(_trained_on(_sgd(), 0, 1, 2, 3).state_dict()),
        lambda table: table.load_state_dict(_trained_on(_sgd(2), 0, 1, 2, 3).state_dict()),
        lambda table: table.load_state_dict({"weight": torch.ones(4, 4)}),
        _emptied,
        _rolled_back,
    ],
)
def test_dumps_are_refused_after_other_changes(change: Any) -> None:
    table, server = _trained_on(_sgd(), 0, 1, 2, 3), _sgd()
    first = table.changes()
    server.apply_changes(first)
    for _ in range(3):
        _trained_on(table, 0)
    second = table.changes(since=first)
    change(server)
    before = server.state_dict()
    with pytest.raises(InvalidArgumentError, match="apply the dumps in their order, from the fir"):
        server.apply_changes(second)
    for name, value in server.state_dict().items():
        assert torch.equal(before[name], value), name
    server.apply_changes(table.changes())
    assert torch.equal(server.eval()(torch.arange(9)), table.eval()(torch.arange(9)))


def test_dumps_follow_a_trainer_that_began_anew() -> None:
    table, server = _trained_on(_sgd(), 0, 1, 2, 3), _sgd()
    server.load_state_dict(table.state_dict())
    state = _trained_on(table, 0).state_dict()
    for again in (copy.deepcopy(table), _sgd(7)):
        again.load_state_dict(state)
        dump = _trained_on(again, 2, 9).changes(since=int(server.state_dict()["counters"][1]))
        follower = copy.deepcopy(server)
        follower.apply_changes(dump)
        # What follows may be taken from a table that has followed so far, too.
        dump = _trained_on(follower, 9).changes(since=dump)
        again.apply_changes(dump)
        assert torch.equal(again.eval()(torch.arange(12)), follower.eval()(torch.arange(12)))


def test_states_without_a_history_load() -> None:
    table, other = _trained_on(_sgd(), 0, 1), _sgd()
    other.load_state_dict(comparable(table))
    first = other.changes()
    second = _trained_on(table, 0).changes(since=first)
    with pytest.raises(InvalidArgumentError, match=r"changes since 2 only, .* this one has at 2"):
        other.apply_changes(second)
    del second["history"]
    with pytest.raises(InvalidArgumentError, match=r"changes since 2 only, .* this one has at 2"):
        other.apply_changes(second)
    other.apply_changes({name: of for name, of in table.changes().items() if name != "history"})
    assert torch.equal(other.eval()(torch.arange(9)), table.eval()(torch.arange(9)))
