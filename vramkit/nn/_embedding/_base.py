"""What the embedding modules share: the table, its state, its statistics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from vramkit.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    TableUsageError,
    VramkitError,
)
from vramkit.nn._embedding._checkpoint import (
    KNOWN_NAMES,
    changes_of,
    fill,
    filled,
    load_weight,
    mark_of,
    names_of,
    state_of,
    with_changes,
)
from vramkit.nn._embedding._config import (
    TableOptions,
    as_float,
    check_norm,
    check_options,
    check_plain,
    check_rate,
    drawn_seed,
    padding_of,
    table_config,
    table_device,
)
from vramkit.nn._embedding._input import check_tensor, int64_ids
from vramkit.nn._embedding._stats import TableStats
from vramkit.nn._embedding._table import Table


class NoRateError(InvalidArgumentError, AttributeError):
    """There is no learning rate to read: ``hasattr`` is False, as torch.jit and inspectors ask."""


class EmbeddingModule(nn.Module):
    """An embedding with a fused optimizer (``_table``) or with a plain ``weight``."""

    num_embeddings: int | None
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool
    optimizer: str | None
    frozen: bool
    # What to_embedding() gives a table with a fused optimizer, whose own `sparse` is always True:
    # that of the module that from_embedding() took.
    _was_sparse = False
    # torch.jit would compile it.
    __jit_unused_properties__ = ("lr",)
    _table: Table | None

    def _set_up(
        self,
        shape: tuple[int | None, int],
        *,
        padding_idx: int | None,
        norm: tuple[float | None, float],
        flags: tuple[bool, bool, bool],
        weight: Tensor | None,
        place: tuple[Any, torch.dtype | None],
        options: TableOptions,
    ) -> None:
        check_options(options)
        self.num_embeddings, self.embedding_dim = shape
        self.padding_idx = padding_of(padding_idx, shape[0])
        self.max_norm = None if norm[0] is None else as_float("max_norm", norm[0])
        self.norm_type = as_float("norm_type", norm[1])
        self.scale_grad_by_freq, self.sparse, self.frozen = flags
        self.optimizer = options.get("optimizer")
        self._table = None
        if weight is not None:
            check_tensor("_weight", weight)
        if weight is not None and tuple(weight.shape) != shape:
            raise InvalidArgumentError(
                f"the given weight has shape {tuple(weight.shape)}, num_embeddings and "
                f"embedding_dim are {shape}"
            )
        if self.optimizer is None:
            self._set_up_plain(weight, place, options)
        else:
            self._set_up_table(weight, place, options)

    def _set_up_plain(
        self, weight: Tensor | None, place: tuple[Any, torch.dtype | None], options: TableOptions
    ) -> None:
        if self.num_embeddings is None:
            raise InvalidArgumentError(
                "num_embeddings=None, an open id space, needs a fused optimizer: pass "
                "optimizer='adam', 'adagrad', 'rowwise_adagrad' or 'sgd'"
            )
        if self.sparse and self.scale_grad_by_freq:
            raise InvalidArgumentError(
                "scale_grad_by_freq: PyTorch has no sparse gradients with it; pass sparse=False, "
                "or a fused optimizer such as optimizer='adam'"
            )
        check_plain(options, place[1])
        device, dtype = place
        if weight is None:
            shape = (self.num_embeddings, self.embedding_dim)
            weight = torch.empty(shape, device=device, dtype=dtype)
            self.weight = nn.Parameter(weight, requires_grad=not self.frozen)
            self.reset_parameters()
        else:
            self.weight = nn.Parameter(weight, requires_grad=not self.frozen)

    def reset_parameters(self) -> None:
        """Draw new initial values; a table with a fused optimizer forgets its rows."""
        table = self._table
        if table is not None:
            config = replace(table.config, seed=drawn_seed())
            self._replace(table, Table(config, table.lr))
            return
        nn.init.normal_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].fill_(0)

    def _set_up_table(
        self, weight: Tensor | None, place: tuple[Any, torch.dtype | None], options: TableOptions
    ) -> None:
        if not self.sparse:
            raise InvalidArgumentError(
                "sparse=False asks for dense gradients, and a table with a fused optimizer has "
                "none; leave sparse out, or pass optimizer=None"
            )
        check_norm((self.max_norm, self.norm_type))
        config, lr = table_config(
            *(self.num_embeddings, self.embedding_dim, place[1], self.padding_idx, place[0]),
            options,
        )
        self._table = Table(config, lr)
        if weight is not None:
            load_weight(self._table, weight)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and self.__dict__.get("_table") is not None:
            raise AttributeError(
                f"{type(self).__name__} with a fused optimizer has no weight to set, so it cannot "
                "share one; store values with load_state_dict({'weight': values}), or build it "
                "with optimizer=None"
            )
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and self.__dict__.get("_table") is not None:
            raise AttributeError(
                f"{type(self).__name__} with a fused optimizer keeps the rows in use only and has "
                "no weight; look ids up in eval mode, or call to_embedding()"
            )
        if name == "lr":  # Python asks here for what a property has raised an AttributeError for
            return self._rate()
        return super().__getattr__(name)

    def _replace(self, old: Table, table: Table) -> None:
        if old.held:
            raise InvalidArgumentError(
                "accumulate() is active and holds gradients for the present rows; load, convert or "
                "draw rows before it or after it"
            )
        # Other threads may look up meanwhile, and a signal's handler may stop this anywhere.
        try:
            table.take_name(old)
            self._table = table
            old.is_replaced = True
        except BaseException:
            if self._table is old:
                old.take_name(old)
            raise
        old.leave_name()

    def _fused(self, what: str) -> Table:
        if self._table is None:
            raise InvalidArgumentError(
                f"{what} is for tables with a fused optimizer; this module has a plain weight "
                "(optimizer=None)"
            )
        return self._table

    @property
    def lr(self) -> float:
        """The fused optimizer's learning rate; set it before each step to follow a schedule."""
        return self._rate()

    @lr.setter
    def lr(self, value: float) -> None:
        self._fused("lr").lr = check_rate(value)

    def _rate(self) -> float:
        try:
            return self._fused("lr").lr
        except InvalidArgumentError as err:
            raise NoRateError(str(err)) from None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze the module, or let it train again."""
        self.frozen = not requires_grad
        return super().requires_grad_(requires_grad)

    def stats(self) -> TableStats:
        """Return what the module holds and how it has been used; see :class:`TableStats`."""
        if self._table is None:
            weight = self.weight
            on_device = weight.nbytes if weight.is_cuda else 0
            return TableStats(
                rows_in_use=len(weight),
                bytes=weight.nbytes,
                device_bytes=on_device,
                host_bytes=weight.nbytes - on_device,
                capacity=len(weight),
                hit_rate=None,
                evictions=0,
                lost_gradients=0,
            )
        facts = self._table.facts()
        rate = facts.hits / facts.lookups if facts.lookups else None
        capacity = None if facts.capacity < 0 else facts.capacity
        return TableStats(
            rows_in_use=facts.rows,
            bytes=facts.bytes,
            device_bytes=facts.bytes - facts.host_bytes,
            host_bytes=facts.host_bytes,
            capacity=capacity,
            hit_rate=rate,
            evictions=facts.evictions,
            lost_gradients=facts.lost,
        )

    def keys(self) -> Tensor:
        """Return the ids that have a row, int64, in no particular order."""
        table = self._fused("keys()")
        return table.keys()

    def prefetch(self, input: Tensor) -> None:  # noqa: A002 - as forward
        """Bring the rows of the next batch to the GPU, while it computes something else.

        With ``placement="cached"``, rows that are in host memory change places with rows that have
        not been used for long, on a stream of its own; the table's next call waits for that on the
        GPU. Call it when the ids of the next batch are known, for instance right after the lookup
        of this one. Other tables have nothing to move. Rows get the same updates without it.

        Args:
            input: Ids, int64 or int32, of any shape, on the table's device. Ids without a row get
                none, ids outside a fixed table are ignored.

        Raises:
            ArgumentTypeError: The ids are not int64 or int32.
            InvalidArgumentError: The ids are on another device, the module has no fused optimizer,
                or a CUDA graph is being captured.

        Example:
            >>> import torch, vramkit
            >>> table = vramkit.nn.SparseEmbedding(
            ...     None, 4, optimizer="adam", placement="cached", budget="1MiB"
            ... )
            >>> batches = [torch.tensor([3, 4]), torch.tensor([4, 5])]
            >>> rows = table(batches[0])
            >>> table.prefetch(batches[1])
            >>> rows.sum().backward()
        """
        self._fused("prefetch()").prefetch(int64_ids(input))

    def accumulate(
        self, *, scaler: GradScaler | None = None, max_norm: float | None = None
    ) -> AbstractContextManager[None]:
        """Collect the gradients of several backward passes, and update once at the end.

        Args:
            scaler: The gradient scaler that scaled the losses; the gradients are divided by the
                scale that it has when the block begins.
            max_norm: The most that the 2-norm of the table's gradient may be; a larger gradient is
                scaled down, as ``torch.nn.utils.clip_grad_norm_`` does. If it is not finite, the
                update is skipped with a warning. Without ``scaler`` and ``max_norm``, gradients
                are applied as they are.

        With either, the update is skipped with a ``RuntimeWarning`` if the gradients are not
        finite.

        Raises:
            ArgumentTypeError: ``scaler`` is no gradient scaler, or ``max_norm`` no number.
            InvalidArgumentError: The module has no fused optimizer, or collects already;
                ``max_norm`` is negative.

        Example:
            >>> import torch, vramkit
            >>> table = vramkit.nn.SparseEmbedding(None, 4, optimizer="adam")
            >>> with table.accumulate(max_norm=1.0):
            ...     table(torch.tensor([3, 4])).sum().backward()
            ...     table(torch.tensor([4, 5])).sum().backward()
        """
        self._fused("accumulate()")
        if scaler is not None and not isinstance(scaler, GradScaler):
            raise ArgumentTypeError(f"scaler must be a torch.amp.GradScaler, got {scaler!r}")
        if max_norm is not None:
            max_norm = as_float("max_norm", max_norm)
            if not max_norm >= 0.0:
                raise InvalidArgumentError(f"max_norm must not be negative, got {max_norm}")
        return self._accumulating(scaler, max_norm)

    @contextmanager
    def _accumulating(self, scaler: GradScaler | None, max_norm: float | None) -> Iterator[None]:
        table = self._fused("accumulate()")
        if table.held:
            raise InvalidArgumentError("accumulate() is active already for this table")
        table.held = True
        try:
            # Before the block, which may end with scaler.update().
            scale = None if scaler is None else float(scaler.get_scale())
            yield
            factor = _factor(table, scale, max_norm)
            if factor is not None:
                table.update_held(factor)
        finally:
            table.discard_held()
            table.held = False

    def changes(self, since: int | Mapping[str, Tensor] = -1) -> dict[str, Tensor]:
        """Return the rows changed after a mark, as flat tensors, for an incremental checkpoint.

        Args:
            since: An earlier dump or state dict, or the mark in it, ``int(dump["counters"][1])``.
                All rows by default.

        Returns:
            What ``state_dict`` has, of these rows only; ``present``, the keys of all rows; and
            ``since``.

        Raises:
            ArgumentTypeError: ``since`` is neither a dump nor an integer.
            InvalidArgumentError: The module has no fused optimizer, the dump has no mark, or
                ``since`` is less than -1 or a mark that the table has not reached.

        Example:
            >>> import torch, vramkit
            >>> table = vramkit.nn.SparseEmbedding(None, 4, optimizer="sgd")
            >>> _ = table(torch.tensor([3, 4]))
            >>> first = table.changes()
            >>> table(torch.tensor([4])).sum().backward()
            >>> table.changes(since=first)["keys"]
            tensor([4])
        """
        table = self._fused("changes()")
        return changes_of(table, mark_of(since))

    def apply_changes(self, changes: Mapping[str, Tensor]) -> None:
        """Bring a table up to date with a dump of :meth:`changes`; rows evicted since are dropped.

        A dump that was taken since another one needs a table whose state the dump's table had then
        or later: from dumps or a state dict of it, with no training, loading or reset in between.

        Raises:
            ArgumentTypeError: ``changes`` is no dump.
            InvalidArgumentError: The dump does not fit the table, or does not follow its state.
            TableFullError: The budget holds fewer rows.
        """
        table = self._fused("apply_changes()")
        if not isinstance(changes, Mapping):
            raise ArgumentTypeError(
                f"changes must be what changes() returned, got {type(changes).__name__}"
            )
        self._replace(table, with_changes(table, changes))

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._table is not None:
            destination.update(
                {f"{prefix}{name}": value for name, value in state_of(self._table).items()}
            )

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        table = self._table
        if table is None:
            super()._load_from_state_dict(
                *(state_dict, prefix, local_metadata, strict),
                *(missing_keys, unexpected_keys, error_msgs),
            )
            return
        own = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix) and "." not in key.removeprefix(prefix)
        }
        if not own and strict:
            missing_keys.extend(f"{prefix}{name}" for name in names_of(table.config))
        if strict:
            unexpected_keys.extend(f"{prefix}{name}" for name in own if name not in KNOWN_NAMES)
        if own:
            try:
                self._replace(table, filled(table, own))
            except (VramkitError, IndexError) as err:
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {err}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        table = self._table
        if table is not None:
            config = table.config
            probe = fn(torch.empty(0, dtype=config.output_dtype, device=config.device))
            if config.device.type == "cpu" and probe.device.type == "cpu" and probe.is_shared():
                raise TableUsageError(
                    "a table with a fused optimizer cannot be in shared memory: processes would "
                    "each train rows of their own; build it with optimizer=None"
                )
            wanted = replace(config.of_dtype(probe.dtype), device=table_device(probe.device))
            if wanted != config:
                moved = Table(wanted, table.lr)
                fill(moved, state_of(table))
                self._replace(table, moved)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _whole_weight(self) -> Tensor:
        table = self._fused("the conversion")
        if self.num_embeddings is None:
            raise InvalidArgumentError(
                "an open id space has no last row; take keys(), and look them up in eval mode"
            )
        return table.read(torch.arange(self.num_embeddings, device=table.config.device))

    def _sparse_again(self) -> bool:
        return self.sparse if self._table is None else self._was_sparse

    def extra_repr(self) -> str:
        """Return the arguments that are not defaults."""
        parts = [f"{self.num_embeddings}, {self.embedding_dim}"]
        for name in ("padding_idx", "max_norm", "optimizer"):
            value = getattr(self, name)
            parts += [] if value is None else [f"{name}={value!r}"]
        if self._table is not None:
            parts.append(f"dtype={self._table.config.dtype}")
        return ", ".join(parts)


def _factor(table: Table, scale: float | None, max_norm: float | None) -> float | None:
    """What the gradients are multiplied by; None if they are not finite."""
    factor = 1.0 if scale is None else 1.0 / scale
    if scale is None and max_norm is None:
        return factor
    norm = table.pending_norm() * factor
    if not math.isfinite(norm):
        warnings.warn(
            "an embedding table skips an update: its gradients are not finite",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    if max_norm is not None:
        factor *= min(1.0, max_norm / (norm + 1e-6))
    return factor
