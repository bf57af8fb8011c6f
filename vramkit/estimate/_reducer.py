"""What ``DistributedDataParallel`` allocates: its buckets, and gradients that are parts of them.

PyTorch's reducer is C++ code that reads gradients by their address, which fakes do not have. This
one takes the same buckets at the same moments, and communicates nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vramkit.errors import UntraceableError
from vramkit.estimate import _engine
from vramkit.estimate._attribution import line_of_caller

# Places of arguments of torch._C._distributed_c10d.Reducer that only newer releases have.
_REBUILT_LIMITS, _BATCHED_COPY = 12, 13
_REPLACED = (
    "DistributedDataParallel replaces its buckets of gradients after the first step; one of two "
    "measured ranks still held the first ones at its peak, the other one did not "
    "(gradient_as_bucket_view=True: neither did)."
)


class Reducer:
    """Takes the place of ``torch.distributed.Reducer``."""

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        buckets: Sequence[Sequence[int]],
        _: Any,
        __: Any,
        sparse: Sequence[bool],
        bucket_bytes: int,
        finds_unused: bool,
        shares: bool,
        ___: Any,
        first_bytes: int,
        *newer: Any,
        mark: Callable[[torch.Tensor], None],
        may_stay: Callable[[str, int], None],
    ) -> None:
        """Take the first buckets, and call ``mark`` with each of them.

        Once they are replaced, ``may_stay`` is called with their bytes.
        """
        place = 10
        options = dict(enumerate(newer, place))
        if any(sparse):
            raise _refusal("has sparse gradients", "use dense ones")
        if options.get(_BATCHED_COPY):
            raise _refusal("copies gradients in batches", "leave batched_grad_copy out")
        self._parameters = list(parameters)
        self._limits = options.get(_REBUILT_LIMITS) or [first_bytes, bucket_bytes]
        self._finds_unused, self._shares = finds_unused, shares
        self._static = self._rebuilt = False
        # Indices of parameters in the order of their gradients, in the first backward pass.
        self._order: list[int] = []
        self._mark, self._may_stay = mark, may_stay
        self._pending: set[int] = set()
        self._expects = False
        self._buckets: list[torch.Tensor] = []
        self._parts: dict[int, torch.Tensor] = {}
        self._take(buckets)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(_hook(weakref.ref(self), index))
            for index, parameter in enumerate(self._parameters)
        ]

    def _take(self, buckets: Sequence[Sequence[int]]) -> None:
        self._buckets.clear()
        self._parts.clear()
        for indices in buckets:
            members = [self._parameters[index] for index in indices]
            sizes = [member.numel() for member in members]
            bucket = torch.empty(sum(sizes), dtype=members[0].dtype, device=members[0].device)
            self._mark(bucket)
            self._buckets.append(bucket)
            parts = zip(indices, members, bucket.split(sizes), strict=True)
            for index, member, part in parts:
                self._parts[index] = _with_strides_of(part, member)

    def ready(self, index: int) -> None:
        """Follow that a parameter's gradient has been computed."""
        if not self._expects:
            return
        self._pending.discard(index)
        if not self._rebuilt and not self._finds_unused:
            self._order.append(index)
        parameter, part = self._parameters[index], self._parts[index]
        if self._shares and parameter.grad is not None and parameter.grad is not part:
            with torch.no_grad():
                parameter.grad = part
        if not self._pending:
            self._expects = False

    def set_logger(self, _: Any) -> None:
        """Nothing is logged."""

    def prepare_for_forward(self) -> None:
        """Nothing is counted."""

    def prepare_for_backward(self, _: Sequence[torch.Tensor]) -> None:
        """Expect the gradients of all parameters.

        Raises:
            UntraceableError: Some were missing in the backward pass before.
        """
        if self._expects and self._pending and not self._finds_unused:
            raise UntraceableError(
                f"{line_of_caller()}: {len(self._pending)} parameters of a DistributedDataParallel "
                "module had no gradient in the step before, at which it fails on a GPU, too; pass "
                "find_unused_parameters=True"
            )
        self._pending, self._expects = set(range(len(self._parameters))), True

    def _rebuild_buckets(self) -> bool:
        if self._rebuilt or (self._finds_unused and not self._static) or not self._order:
            return False
        ordered = [self._parameters[index] for index in self._order]
        sparse = [False] * len(ordered)
        buckets, _ = torch._C._distributed_c10d._compute_bucket_assignment_by_size(
            ordered, self._limits, sparse, list(self._order)
        )
        self._rebuilt = True
        if not self._shares:
            self._may_stay(_REPLACED, sum(bucket.nbytes for bucket in self._buckets))
        self._take(buckets)
        return True

    def _set_static_graph(self) -> None:
        self._static = True

    def _delay_all_reduce(self) -> None:
        """Gradients of the first step of a static graph are communicated at its end."""

    def _remove_autograd_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _check_reducer_finalized(self) -> None:
        """Nothing is left to be done."""

    def _set_forward_pass_work_handle(self, *_: Any) -> None:
        """No rank joins later."""


class Logger:
    """Takes the place of ``torch.distributed.Logger``: nothing is logged."""

    def __init__(self, _: Any) -> None:
        """Take the reducer."""

    def set_construction_data_and_log(self, *_: Any) -> None:
        """Log nothing."""

    def set_runtime_stats_and_log(self) -> None:
        """Log nothing."""

    def set_error_and_log(self, _: str) -> None:
        """Log nothing."""

    def _set_static_graph(self) -> None:
        """Log nothing."""

    def _set_comm_hook_name(self, _: str) -> None:
        """Log nothing."""


def refuse_hook(*_: Any) -> None:
    """Refuse a hook of communication, which may allocate anything.

    Raises:
        UntraceableError: Always.
    """
    raise _refusal("has a hook of communication", "leave the hook out")


def _hook(reducer: weakref.ref[Reducer], index: int) -> Callable[[torch.Tensor], None]:
    def follow(_: torch.Tensor) -> None:
        alive = reducer()
        if alive is not None:
            alive.ready(index)

    return follow


def _with_strides_of(part: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """Gradients have the strides of parameters where these are dense."""
    if _engine.is_dense(member):
        return part.as_strided(member.shape, member.stride(), part.storage_offset())
    return part.view(member.shape)


def _refusal(what: str, advice: str) -> UntraceableError:
    return UntraceableError(
        f"{line_of_caller()}: a DistributedDataParallel module {what}, which is not followed, so "
        f"its memory cannot be known; {advice} in the estimated step"
    )
