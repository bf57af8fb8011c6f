"""Steps of several ranks: DistributedDataParallel, FSDP2, collectives, and what is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.pools import run_script
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vramkit import estimate
from vramkit.errors import InvalidArgumentError, UntraceableError
from vramkit.estimate import find_target
from vramkit.estimate._recorder import Kind, Phase, Trace
from vramkit.estimate._trace import trace

_H100 = find_target("h100")
_WIDTH, _LAYERS, _RANKS = 512, 4, 8
_WEIGHT = _WIDTH * _WIDTH * 4
_MODEL = _LAYERS * _WEIGHT


def traced(make_step: Callable[[], Callable[[], Any]], steps: int = 3) -> Trace:
    return trace(make_step, target=_H100, steps=steps, world_size=_RANKS)


def _layers() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(_WIDTH, _WIDTH, bias=False, device="cuda") for _ in range(_LAYERS))
    )


def _training_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    x = torch.randn(4, _WIDTH, device="cuda")

    def step() -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _data_parallel(**options: Any) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        dist.init_process_group("nccl")
        model = DistributedDataParallel(_layers(), device_ids=[0], **options)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return _training_step(model, optimizer)

    return make_step


def _buckets(found: Trace, step: int) -> list[int]:
    wanted = ("aten::empty.memory_format", Kind.GRADIENT, step)
    return [b.size_bytes for b in found.blocks if (b.operator, b.kind, b.step) == wanted]


def _live(found: Trace, kind: Kind, step: int) -> int:
    """Most bytes of a kind in a step."""
    ends = [*found.step_starts, len(found.changes)]
    live = most = 0
    for place, change in enumerate(found.changes[: ends[step + 1]]):
        block = found.blocks[max(change, ~change)]
        if block.kind is kind:
            live += block.size_bytes if change >= 0 else -block.size_bytes
        if place >= ends[step]:
            most = max(most, live)
    return most


@pytest.mark.parametrize(("shares", "sets"), [(False, 2), (True, 1)], ids=["copies", "views"])
def test_buckets_are_as_large_as_the_gradients(shares: bool, sets: int) -> None:
    found = traced(_data_parallel(gradient_as_bucket_view=shares))
    assert sum(_buckets(found, -1)) == _MODEL
    most = _live(found, Kind.GRADIENT, 2)
    # A gradient is dropped when it has been copied into its bucket.
    assert _MODEL * sets <= most <= _MODEL * sets + _WEIGHT
    assert found.parameters == _MODEL // 4


def test_buckets_are_made_anew_in_the_order_of_the_gradients() -> None:
    found = traced(_data_parallel(bucket_cap_mb=2))
    assert _buckets(found, -1) == [_MODEL]
    assert sum(_buckets(found, 1)) == _MODEL
    assert max(_buckets(found, 1)) == 2 * _WEIGHT
    assert _buckets(found, 2) == []
    kept = traced(_data_parallel(bucket_cap_mb=2, find_unused_parameters=True))
    assert sum(_buckets(kept, -1)) == _MODEL
    assert _buckets(kept, 1) == []


@pytest.mark.parametrize(("shares", "sets"), [(False, 1), (True, 0)], ids=["copies", "views"])
def test_replaced_buckets_may_stay(shares: bool, sets: int) -> None:
    found = traced(_data_parallel(gradient_as_bucket_view=shares))
    assert sum(found.more_bytes.values()) == sets * _MODEL
    assert all("replaces its buckets" in sentence for sentence in found.more_bytes)


def test_gradients_may_be_accumulated_without_communication() -> None:
    def make_step() -> Callable[[], None]:
        model = DistributedDataParallel(_layers(), gradient_as_bucket_view=True)
        x = torch.randn(4, _WIDTH, device="cuda")

        def step() -> None:
            with model.no_sync():
                model(x).sum().backward()
            model(x).sum().backward()
            grads = [parameter.grad for parameter in model.parameters()]
            assert None not in grads
            # Views into buckets, which are fewer.
            buckets = {grad.untyped_storage()._cdata for grad in grads if grad is not None}
            assert len(buckets) < len(grads)

        return step

    found = traced(make_step)
    assert _live(found, Kind.GRADIENT, 2) <= 2 * _MODEL


def test_parameters_without_gradients_are_refused_as_on_a_gpu() -> None:
    def make_step(**options: Any) -> Callable[[], None]:
        layers = _layers()
        model = DistributedDataParallel(
            nn.ModuleDict({"used": layers[0], "unused": layers[1]}), **options
        )
        model.module.forward = layers[0].forward
        x = torch.randn(4, _WIDTH, device="cuda")
        return lambda: model(x).sum().backward()

    with pytest.raises(UntraceableError, match=r"1 parameters .* pass find_unused_parameters=True"):
        traced(make_step)
    traced(lambda: make_step(find_unused_parameters=True))


def test_hooks_of_communication_are_refused() -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    def make_step() -> Callable[[], None]:
        model = DistributedDataParallel(_layers())
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return lambda: None

    with pytest.raises(UntraceableError, match=r"test_ranks\.py:\d+.* hook"):
        traced(make_step)


def _sharded(reshard: bool) -> Callable[[], Callable[[], None]]:
    def make_step() -> Callable[[], None]:
        from torch.distributed.fsdp import fully_shard

        model = _layers()
        for layer in model:
            fully_shard(layer, reshard_after_forward=reshard)
        fully_shard(model, reshard_after_forward=reshard)
        optimizer = torch.optim.AdamW(model.parameters())
        return _training_step(model, optimizer)

    return make_step


def test_shards_are_gathered_layer_by_layer() -> None:
    found = traced(_sharded(reshard=True))
    assert _live(found, Kind.OPTIMIZER_STATE, 2) == pytest.approx(2 * _MODEL // _RANKS, rel=1e-3)
    assert _live(found, Kind.GRADIENT, 2) == _MODEL // _RANKS
    gathered = [
        b.size_bytes
        for b in found.blocks
        if b.step == 2 and b.phase is Phase.FORWARD and b.operator == "UntypedStorage.resize_"
    ]
    assert gathered == [_WEIGHT] * _LAYERS
    assert {b.stream for b in found.blocks} > {0}  # buffers of communication
    kept = traced(_sharded(reshard=False))
    more = kept.events().peak_live_bytes - found.events().peak_live_bytes
    assert 0 < more <= _MODEL


def test_weights_may_be_made_after_sharding() -> None:
    def make_step() -> Callable[[], None]:
        from torch.distributed.fsdp import fully_shard

        with torch.device("meta"):
            layer = nn.Linear(_WIDTH, _WIDTH)
        fully_shard(layer)
        layer.to_empty(device="cuda")
        layer.reset_parameters()
        x = torch.randn(4, _WIDTH, device="cuda")
        return lambda: layer(x).sum().backward()

    found = traced(make_step)
    assert _live(found, Kind.PARAMETER, 2) == (_WEIGHT + 4 * _WIDTH) // _RANKS


def test_static_graphs_and_sharded_optimizers() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def make_step() -> Callable[[], None]:
        model = DistributedDataParallel(_layers(), static_graph=True)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.1)
        return _training_step(model, optimizer)

    traced(make_step)


def test_the_older_fsdp_is_refused() -> None:
    def make_step() -> Any:
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(_layers())

    with pytest.raises(UntraceableError, match=r"test_ranks\.py:\d+ .*; use fully_shard"):
        traced(make_step)


def test_mesh_and_groups_count_communicators() -> None:
    def make_step() -> Callable[[], None]:
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cuda", (2, 4), mesh_dim_names=("data", "model"))
        x = torch.randn(8, device="cuda")
        return lambda: dist.all_reduce(x, group=mesh.get_group("model"))

    assert traced(make_step).groups == 3


def test_nccl_counts_for_the_device() -> None:
    def make_step() -> Callable[[], None]:
        x = torch.randn(8, device="cuda")
        return lambda: dist.all_reduce(x)

    alone = estimate(step=lambda: torch.randn(8, device="cuda").sin, world_size=1)
    pair, many = (estimate(step=make_step, world_size=ranks) for ranks in (2, 8))
    assert pair.device_bytes - alone.device_bytes == 544_000_000
    assert many.device_bytes - alone.device_bytes == 688_000_000
    assert not any("NCCL" in reason for reason in alone.uncertain)
    assert "1 of up to 8 ranks) is assumed" in " ".join(many.uncertain)
    assert many.device_low_bytes < many.device_bytes < many.device_high_bytes


@pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning")
def test_collectives_return_at_once() -> None:
    def make_step() -> Callable[[], None]:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("nccl", rank=rank, world_size=ranks)
        x = torch.randn(1024, device="cuda")

        def step() -> None:
            parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, x)
            dist.all_gather_into_tensor(torch.empty(ranks * 1024, device="cuda"), x)
            dist.reduce_scatter_tensor(torch.empty(128, device="cuda"), x)
            dist.all_reduce(x, async_op=True).wait()
            dist.broadcast(x, 0)
            dist.barrier()
            objects: list[Any] = [None] * ranks
            dist.all_gather_object(objects, {"rank": rank})
            assert objects == [{"rank": 0}] * ranks
            dist.broadcast_object_list(objects)
            dist.destroy_process_group()

        return step

    found = traced(make_step)
    taken = [b.size_bytes for b in found.blocks if b.operator == "c10d::allgather_"]
    assert taken == [_RANKS * 4096] * 3
    assert found.unknown == ()


def test_nothing_is_left_behind() -> None:
    def fails() -> Any:
        dist.init_process_group("nccl")
        raise ZeroDivisionError

    before = dict(os.environ), vars(dist).copy()
    with pytest.raises(ZeroDivisionError):
        traced(fails)
    traced(_data_parallel(), steps=1)
    assert not dist.is_initialized()
    assert (dict(os.environ), vars(dist)) == before


_OWN_GROUP = """
import torch.distributed as dist
import vramkit, pytest
from vramkit.errors import ScopeError

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with pytest.raises(ScopeError, match="part of a process group; .* before init_process_group"):
    vramkit.estimate(step=lambda: lambda: None, world_size=2)
assert dist.get_world_size() == 1 and dist.get_backend() == "gloo"
dist.destroy_process_group()
"""


def test_a_group_of_the_program_is_not_touched() -> None:
    run_script(_OWN_GROUP)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 2, "rank": 0}, "starts a process group of 2 ranks, but world_size=8"),
        ({"rank": 3}, "as rank 3, but rank 0 is estimated"),
    ],
)
def test_another_group_than_the_estimated_one_is_refused(options: Any, message: str) -> None:
    def make_step() -> Any:
        dist.init_process_group("nccl", **options)

    with pytest.raises(InvalidArgumentError, match=message):
        traced(make_step)


def _wraps() -> Callable[[], Any]:
    model = DistributedDataParallel(nn.Linear(4, 4, device="cuda"), device_ids=[0])
    return lambda: model(torch.ones(3, 4, device="cuda")).sum().backward()


def _reduces() -> Callable[[], Any]:
    x = torch.ones(3, device="cuda")
    return lambda: dist.all_reduce(x)


@pytest.mark.parametrize("make_step", [_wraps, _reduces])
def test_a_group_that_nobody_made_names_the_argument(make_step: Any) -> None:
    with pytest.raises(UntraceableError, match=r"test_ranks\.py:\d+ uses .*pass world_size=.* --w"):
        trace(make_step, target=_H100)


@pytest.mark.parametrize("ranks", [0, -1, 2.0, True, "2"])
def test_the_number_of_ranks_is_checked(ranks: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="world_size must be a positive integer"):
        estimate(step=lambda: lambda: None, world_size=ranks)


@pytest.mark.filterwarnings("ignore:Attempted to get default timeout")
@pytest.mark.parametrize("options", [{}, {"rank": 0, "world_size": 2}], ids=["env", "given"])
def test_without_a_number_of_ranks_the_refusal_names_the_argument(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)

    def make_step() -> Any:
        store = {"store": dist.HashStore()} if options else {}
        dist.init_process_group("nccl", **store, **options)

    with pytest.raises(UntraceableError, match=r"test_ranks\.py:\d+ .*pass world_size="):
        trace(make_step, target=_H100)
    assert not dist.is_initialized()


def test_synchronised_batch_norm_is_refused_with_its_substitute() -> None:
    def make_step(kind: type[nn.Module] = nn.SyncBatchNorm) -> Callable[[], None]:
        dist.init_process_group("nccl")
        model = nn.Sequential(nn.Conv2d(3, 8, 3), kind(8)).to("cuda")
        x = torch.randn(2, 3, 8, 8, device="cuda")
        return lambda: model(x).sum().backward()

    with pytest.raises(UntraceableError, match=r"among several ranks, .*; use nn\.BatchNorm2d"):
        traced(make_step)
    assert traced(lambda: make_step(nn.BatchNorm2d)).blocks
