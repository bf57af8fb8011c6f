"""One rank of several, without the others: collectives return at once and communicate nothing.

``torch.distributed`` runs on PyTorch's own fake process group, as rank 0.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from vramkit.errors import InvalidArgumentError, ScopeError, UntraceableError
from vramkit.estimate import _reducer
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._fake_device import patched

_FAKE = "fake"
_ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "MASTER_ADDR": "localhost"}


class Groups:
    """The process groups of a trace.

    Attributes:
        world_size: How many ranks there are.
        count: How many groups have been made that have more than one rank, the default one
            included.
    """

    def __init__(self, world_size: int) -> None:
        """Count none.

        Args:
            world_size: How many ranks there are.
        """
        self.world_size = world_size
        self.count = 0


@contextlib.contextmanager
def ranks(
    groups: Groups, *, mark: Callable[[Any], None], may_stay: Callable[[str, int], None]
) -> Iterator[None]:
    """Be rank 0 of several until the scope ends; no process group is left behind.

    Args:
        groups: How many ranks there are; counts their process groups.
        mark: Called with each bucket of gradients.
        may_stay: Called with bytes that a rank may hold for longer, and why.

    Raises:
        ScopeError: The process is part of a process group already.
        UntraceableError: This PyTorch has no ``torch.distributed``.
    """
    if not dist.is_available():
        raise UntraceableError(
            "world_size= needs torch.distributed, which this build of PyTorch does not have"
        )
    if dist.is_initialized():
        raise ScopeError(
            "this process is part of a process group; world_size= makes one of its own, so "
            "estimate before init_process_group(), or in another process"
        )
    fake = importlib.import_module("torch.testing._internal.distributed.fake_pg")
    c10d = dist.distributed_c10d
    made = c10d._new_process_group_helper
    size = groups.world_size
    functions = {
        "all_gather_object": _all_gather_object,
        "gather_object": _gather_object,
        "broadcast_object_list": _broadcast_object_list,
        "scatter_object_list": _scatter_object_list,
        "init_process_group": _initialised(size),
        "destroy_process_group": _destroys(c10d.destroy_process_group),
        "is_nccl_available": lambda: True,
    }
    with contextlib.ExitStack() as scope:
        scope.enter_context(_environment(size))
        scope.callback(_end)
        scope.enter_context(patched(c10d, _new_process_group_helper=_counted(groups, made)))
        scope.enter_context(patched(c10d, default_pg_nccl_timeout=timedelta(minutes=10)))
        dist.init_process_group(_FAKE, store=fake.FakeStore(), rank=0, world_size=size)
        scope.enter_context(_dtensor_asks_aside())
        scope.enter_context(patched(dist, **_reducers(mark=mark, may_stay=may_stay)))
        scope.enter_context(patched(dist, **functions))
        scope.enter_context(patched(_module_of_fsdp(), __init__=_refuse_fsdp))
        scope.enter_context(patched(c10d, **functions))
        yield


def _module_of_fsdp() -> Any:
    """FSDP's older class; what TorchScript compiles for optimizers is compiled before the trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch.distributed.optim")
        return importlib.import_module("torch.distributed.fsdp").FullyShardedDataParallel


def _refuse_fsdp(*_: Any, **__: Any) -> None:
    raise UntraceableError(
        f"{line_of_caller()} uses FullyShardedDataParallel, which is not followed, so its memory "
        "cannot be known; use fully_shard (FSDP2) in the estimated step"
    )


def _reducers(**calls: Any) -> dict[str, Any]:
    """What DistributedDataParallel takes from ``torch.distributed``."""
    return {
        "Reducer": functools.partial(_reducer.Reducer, **calls),
        "Logger": _reducer.Logger,
        "_verify_params_across_processes": lambda *_: None,
        "_register_comm_hook": _reducer.refuse_hook,
        "_register_builtin_comm_hook": _reducer.refuse_hook,
    }


@contextlib.contextmanager
def _dtensor_asks_aside() -> Iterator[None]:
    """DTensor runs operators on fakes of its own, to see what shape results have."""
    name = "torch.distributed.tensor._sharding_prop"
    propagator = importlib.import_module(name).ShardingPropagator
    real = propagator._propagate_tensor_meta_non_cached

    def propagate(self: Any, schema: Any) -> Any:
        with _disable_current_modes():
            return real(self, schema)

    with patched(propagator, _propagate_tensor_meta_non_cached=propagate):
        yield


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _environment(world_size: int) -> Iterator[None]:
    """What ``torchrun`` tells its processes."""
    told = {**_ENVIRONMENT, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _initialised(world_size: int) -> Callable[..., None]:
    """The group is there; a program that asks for another size is told."""

    def init_process_group(*args: Any, **options: Any) -> None:
        wanted = args[3] if len(args) > 3 else options.get("world_size", -1)
        rank = args[4] if len(args) > 4 else options.get("rank", -1)
        if wanted not in (-1, world_size):
            raise InvalidArgumentError(
                f"{line_of_caller()} starts a process group of {wanted} ranks, but world_size="
                f"{world_size} is estimated; pass the same to both"
            )
        if rank > 0:
            raise InvalidArgumentError(
                f"{line_of_caller()} starts a process group as rank {rank}, but rank 0 is "
                "estimated; take the rank from the environment variable RANK"
            )

    return init_process_group


def _destroys(real: Callable[..., None]) -> Callable[..., None]:
    """The default group stays until the estimate ends."""

    def destroy_process_group(group: Any = None) -> None:
        if group is not None and group is not dist.group.WORLD:
            real(group)

    return destroy_process_group


def _all_gather_object(object_list: list[Any], obj: Any, group: Any = None) -> None:
    """Other ranks are assumed to have the same object."""
    del group
    object_list[:] = [copy.deepcopy(obj) for _ in object_list]


def _gather_object(
    obj: Any, object_gather_list: list[Any] | None = None, *_: Any, **__: Any
) -> None:
    if object_gather_list is not None:
        _all_gather_object(object_gather_list, obj)


def _broadcast_object_list(*_: Any, **__: Any) -> None:
    """Rank 0 keeps its own objects."""


def _scatter_object_list(
    scatter_object_output_list: list[Any],
    scatter_object_input_list: list[Any] | None = None,
    *_: Any,
    **__: Any,
) -> None:
    if scatter_object_input_list:
        scatter_object_output_list[0] = scatter_object_input_list[0]


def _counted(groups: Groups, real: Callable[..., Any]) -> Callable[..., Any]:
    """Groups of any backend are fake ones, and are counted."""

    def new_process_group_helper(
        size: int, rank: int | None, members: Any, backend: Any, *args: Any, **options: Any
    ) -> Any:
        del backend
        if (len(members) or size) > 1 and rank is not None and rank >= 0:
            groups.count += 1
        options.pop("backend_options", None)
        return real(size, rank, members, _FAKE, *args, **options)

    return new_process_group_helper


def check_world_size(world_size: Any) -> None:
    """Refuse what is no number of ranks.

    Raises:
        InvalidArgumentError: It is none.
    """
    if world_size is not None and (type(world_size) is not int or world_size < 1):
        raise InvalidArgumentError(
            f"world_size must be a positive integer or None, got {world_size!r}"
        )


def is_all_to_all(operator: str) -> bool:
    """Tell whether an operator exchanges all to all.

    >>> is_all_to_all("c10d::alltoall_base_"), is_all_to_all("c10d::allreduce_")
    (True, False)
    """
    return "alltoall" in operator or "all_to_all" in operator
