"""Steps of several ranks, one GPU each. Each entry builds the step of one rank."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.estimate.own import Block
from benchmarks.estimate.training import MakeStep, Step, functions


class Decoder(nn.Module):
    """A small causal language model."""

    def __init__(self, width: int = 1024, layers: int = 6, words: int = 16_000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList([Block(width, 16) for _ in range(layers)])
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, causal=True)
        return self.head(x)


def _device() -> torch.device:
    """Join the process group; returns the rank's GPU."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl")
    return device


def _training(model: nn.Module, device: torch.device, *, autocast: bool) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    ids = torch.randint(0, 16_000, (4, 513), device=device)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            logits = model(ids[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def data_parallel() -> Step:
    """DistributedDataParallel, bf16 autocast."""
    device = _device()
    model = DistributedDataParallel(Decoder().to(device), device_ids=[device.index])
    return _training(model, device, autocast=True)


def data_parallel_views() -> Step:
    """The same in float32; gradients are views of the buckets."""
    device = _device()
    model = DistributedDataParallel(
        Decoder().to(device), device_ids=[device.index], gradient_as_bucket_view=True
    )
    return _training(model, device, autocast=False)


def _sharded(**options: Any) -> Step:
    device = _device()
    model, mesh = Decoder().to(device), init_device_mesh("cuda", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return _training(model, device, autocast=False)


def fully_sharded() -> Step:
    """FSDP2, each block a group of its own, parameters gathered in bf16."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return _sharded(mp_policy=policy)


def fully_sharded_kept() -> Step:
    """FSDP2 that keeps gathered parameters after forward (ZeRO 2), float32."""
    return _sharded(reshard_after_forward=False)


PARALLEL: dict[str, MakeStep] = functions(
    data_parallel, data_parallel_views, fully_sharded, fully_sharded_kept
)
