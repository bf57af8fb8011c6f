"""Tables in processes that are started after them, and in groups of processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.pools import run_script
from torch.multiprocessing import get_context

from vramkit.errors import InvalidArgumentError
from vramkit.nn import SparseEmbedding

IDS = torch.tensor([3, 4])
_IN_DDP = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import pytest
from vramkit.errors import TableUsageError
from vramkit.nn import SparseEmbedding, SparseEmbeddingBag

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
ids = torch.tensor([[1, 2]])
for kind in (SparseEmbedding, SparseEmbeddingBag):
    module = kind(9, 4)
    for fits in (kind(9, 4, sparse=False), module.to_embedding()):
        DistributedDataParallel(nn.Sequential(fits))(ids).sum().backward()
        assert fits.weight.grad is not None
    for wrapped in (module, kind(9, 4, optimizer="sgd")):
        model = DistributedDataParallel(nn.ModuleList([wrapped, nn.Linear(1, 1)]))
        model.module.forward = wrapped.forward
        with pytest.raises(TableUsageError, match="sparse=False, or"):
            model(ids)
        with torch.no_grad():
            model(ids)
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_new_process_has_the_rows(tmp_path: Path, method: str) -> None:
    table = SparseEmbedding(None, 4, optimizer="adam", dtype=torch.bfloat16, lr=0.5)
    table(IDS).sum().backward()
    path = tmp_path / "table"
    process = get_context(method).Process(target=torch.save, args=(table, path))
    process.start()
    process.join()
    assert process.exitcode == 0
    again = torch.load(path, weights_only=False)
    assert again.lr == 0.5
    for name, value in table.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    again(IDS).sum().backward()
    assert int(again.state_dict()["counters"][0]) == 2


def _from_a_fork(
    path: Path, make: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return what a forked child makes."""
    process = get_context("fork").Process(target=lambda: torch.save(make(), path))
    process.start()
    process.join()
    assert process.exitcode == 0
    made: dict[str, torch.Tensor] = torch.load(path)
    return made


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_dump_of_a_forked_child_does_not_continue_its_parent(tmp_path: Path) -> None:
    tables = [SparseEmbedding(None, 4, optimizer="sgd", seed=1) for _ in range(3)]
    trainer, with_parent, with_child = tables
    trainer(IDS).sum().backward()
    first = trainer.changes()
    trainer(IDS).sum().backward()

    def trained_on() -> dict[str, torch.Tensor]:
        for key in range(5):
            trainer(torch.tensor([key]))
        return trainer.changes(since=first)

    second = _from_a_fork(tmp_path / "dump", trained_on)
    for table in (with_parent, with_child):
        table.apply_changes(first)
    trainer(IDS).sum().backward()
    with_parent.apply_changes(trainer.changes(since=first))
    with pytest.raises(InvalidArgumentError, match="it is another table, or one of them has been"):
        with_parent.apply_changes(second)
    with_child.apply_changes(second)
    assert sorted(with_child.keys().tolist()) == list(range(5))


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_forked_child_may_save_the_state_of_its_parent(tmp_path: Path) -> None:
    trainer, follower = (SparseEmbedding(None, 4, optimizer="sgd", seed=1) for _ in range(2))
    trainer(IDS).sum().backward()
    state = _from_a_fork(tmp_path / "state", trainer.state_dict)
    trainer(IDS).sum().backward()
    follower.load_state_dict(state)
    follower.apply_changes(trainer.changes(since=state))
    assert torch.equal(follower.eval()(IDS), trainer.eval()(IDS))


def test_what_ddp_takes() -> None:
    run_script(_IN_DDP)
