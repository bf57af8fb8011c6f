"""Many tables in one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.modules.module import _has_any_global_hook

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, VramkitError
from vramkit.nn._embedding._bag import SparseEmbeddingBag
from vramkit.nn._embedding._base import EmbeddingModule, NoRateError
from vramkit.nn._embedding._embedding import SparseEmbedding
from vramkit.nn._embedding._faults import NAMELESS, feature_at_fault, of_feature
from vramkit.nn._embedding._lookup import look_up
from vramkit.nn._embedding._request import Asked
from vramkit.nn._embedding._stats import TableStats


class SparseEmbeddingCollection(nn.Module):
    """Serves the features of a model from several tables in one call.

    The result is that of calling the tables one after the other, in the order of the features, but
    all tables with a fused optimizer on one device share one native call, and one update when
    backward ends. On a CUDA device, a kernel serves all tables whose rows have the same type and
    about the same width.

    Args:
        tables: :class:`SparseEmbedding` and :class:`SparseEmbeddingBag` modules by name.
        features: For each feature, the name of its table; features may share one. By default, each
            table serves the feature of its own name.

    Raises:
        InvalidArgumentError: A feature names no table, or a table has a name that ``nn.ModuleDict``
            refuses; in forward, features are missing or unknown.
        ArgumentTypeError: A table is neither of the two modules; in forward, the arguments of a
            feature are neither a tensor nor a sequence of as many as its table takes.
        RowIndexError: In forward, an id outside a fixed table. Like all errors about ids, offsets
            and budgets, it names the feature, the first if several are wrong, and comes before any
            id has got a row; only if features share a table, the first of them may have got theirs.
        TableFullError: In forward, the budget of a table holds fewer rows than are needed.

    Example:
        >>> import torch
        >>> import vramkit
        >>> items = vramkit.nn.SparseEmbedding(None, 4, optimizer="adam")
        >>> both = vramkit.nn.SparseEmbeddingCollection(
        ...     {"item": items}, features={"bought": "item", "seen": "item"}
        ... )
        >>> found = both({"bought": torch.tensor([1]), "seen": torch.tensor([1, 2])})
        >>> [tuple(rows.shape) for rows in found.values()]
        [(1, 4), (2, 4)]
    """

    __jit_unused_properties__ = ("lr",)

    def __init__(
        self,
        tables: Mapping[str, SparseEmbedding | SparseEmbeddingBag],
        *,
        features: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(tables, Mapping):
            raise ArgumentTypeError(f"tables must map names to tables, got {type(tables).__name__}")
        for name, table in tables.items():
            if not isinstance(table, SparseEmbedding | SparseEmbeddingBag):
                raise ArgumentTypeError(
                    f"table {name!r} must be a SparseEmbedding or a SparseEmbeddingBag, got "
                    f"{type(table).__name__}"
                )
        self.tables = nn.ModuleDict()
        for name, table in tables.items():
            try:
                self.tables[name] = table
            except (KeyError, TypeError):
                raise InvalidArgumentError(
                    f"a table cannot be named {name!r}: nn.ModuleDict takes non-empty names "
                    "without a dot that are none of its own attributes, such as 'items'; name the "
                    "feature so, with features="
                ) from None
        self.features = {name: name for name in tables} if features is None else dict(features)
        for feature, name in self.features.items():
            if name not in tables:
                raise InvalidArgumentError(
                    f"feature {feature!r} names the table {name!r}; known are {sorted(tables)}"
                )

    @property
    def lr(self) -> float:
        """The learning rate of all tables with a fused optimizer; setting it sets that of each.

        Raises:
            InvalidArgumentError: No table has one, or the tables have different ones.
        """
        return self._rate()

    @lr.setter
    def lr(self, value: float) -> None:
        for table in self._fused("lr").values():
            table.lr = value

    def _rate(self) -> float:
        try:
            tables = self._fused("lr")
        except InvalidArgumentError as err:
            raise NoRateError(str(err)) from None
        rates = {name: table.lr for name, table in tables.items()}
        if len(set(rates.values())) > 1:
            raise NoRateError(
                f"the tables have different learning rates, {rates}; read them by tables[name].lr"
            )
        return next(iter(rates.values()))

    def __getattr__(self, name: str) -> Any:
        return self._rate() if name == "lr" else super().__getattr__(name)

    def stats(self) -> dict[str, TableStats]:
        """Return the statistics of each table, by its name; see :class:`TableStats`."""
        return {name: table.stats() for name, table in self._modules_by_name().items()}

    def accumulate(
        self, *, scaler: GradScaler | None = None, max_norm: float | None = None
    ) -> AbstractContextManager[None]:
        """Collect the gradients of several backward passes, and update each table once at the end.

        Args:
            scaler: As for ``accumulate`` of :class:`SparseEmbedding`.
            max_norm: The same, of each table's own gradient.

        Raises:
            ArgumentTypeError: As for ``accumulate`` of :class:`SparseEmbedding`.
            InvalidArgumentError: No table has a fused optimizer, or one collects already;
                ``max_norm`` is negative.
        """
        tables = set(self._fused("accumulate()").values())  # one may have two names
        return _all_of([table.accumulate(scaler=scaler, max_norm=max_norm) for table in tables])

    def prefetch(self, inputs: Mapping[str, Tensor | Sequence[Tensor | None]]) -> None:
        """Bring the rows of the next batch to the GPU, as a :class:`SparseEmbedding` does.

        Args:
            inputs: As for ``forward``; offsets and weights are not used.

        Raises:
            ArgumentTypeError: The inputs are no dict.
            InvalidArgumentError: Features are missing or unknown.
        """
        self._check(inputs)
        for feature, name in self.features.items():
            given: Any = inputs[feature]
            module: Any = self.tables[name]
            if module._table is not None:
                module.prefetch(given if isinstance(given, Tensor) else given[0])

    def _modules_by_name(self) -> dict[str, EmbeddingModule]:
        return cast("dict[str, EmbeddingModule]", dict(self.tables.items()))

    def _fused(self, what: str) -> dict[str, EmbeddingModule]:
        found = {
            name: table
            for name, table in self._modules_by_name().items()
            if table._table is not None
        }
        if not found:
            raise InvalidArgumentError(
                f"{what} is for tables with a fused optimizer, and no table of the collection has "
                "one"
            )
        return found

    def _check(self, inputs: Any) -> None:
        if not isinstance(inputs, Mapping):
            raise ArgumentTypeError(
                f"the inputs must be a dict from each of {sorted(self.features)} to its ids, got "
                f"{type(inputs).__name__}"
            )
        if inputs.keys() != self.features.keys():
            raise InvalidArgumentError(
                f"the inputs must be {sorted(self.features)}, got {sorted(inputs)}"
            )

    def forward(self, inputs: Mapping[str, Tensor | Sequence[Tensor | None]]) -> dict[str, Tensor]:
        """Look up every feature.

        Args:
            inputs: For each feature, ids, or the arguments of its table's ``forward``:
                ``(ids, offsets)`` or ``(ids, offsets, per_sample_weights)``.
        """
        self._check(inputs)
        groups: dict[Any, list[tuple[str, Asked]]] = {}
        found: dict[str, Any] = dict.fromkeys(self.features)
        tables = self.tables
        for feature, name in self.features.items():
            module: Any = tables[name]
            arguments = _arguments(feature, inputs[feature], module)
            try:
                if not _joins(module):
                    found[feature] = module(*arguments)
                    continue
                request, weights = module._request(*arguments)
            except VramkitError as err:
                raise of_feature(err, feature, name) from err
            except Exception as err:
                # PyTorch's own, of a plain weight or of a hook.
                err.add_note(f"in feature {feature!r} of table {name!r}")
                raise
            train = module.training and not module.frozen
            # Where no table is trained, gradients of weights concern one output alone.
            alone = feature if weights is not None and not train else None
            key = (request.table.place, train, alone)
            groups.setdefault(key, []).append((feature, (request, weights)))
        for (_, train, _), group in groups.items():
            for (feature, _), output in zip(group, self._outputs(group, train), strict=True):
                found[feature] = output
        return found

    def _outputs(self, group: Sequence[tuple[str, Asked]], train: bool) -> Sequence[Tensor]:
        requests, weights = zip(*(asked for _, asked in group), strict=True)
        try:
            return look_up(requests, weights, train=train)
        except NAMELESS as err:
            names = [feature for feature, _ in group]
            feature = feature_at_fault(err, zip(names, requests, strict=True))
            if feature is None:
                raise
            raise of_feature(err, feature, self.features[feature]) from err


@contextmanager
def _all_of(scopes: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as entered:
        for scope in scopes:
            entered.enter_context(scope)
        yield


def _arguments(feature: str, given: Any, module: nn.Module) -> Sequence[Any]:
    if isinstance(given, Tensor):
        return (given,)
    if not isinstance(given, Sequence):
        raise ArgumentTypeError(
            f"feature {feature!r} needs ids or a sequence of arguments, got {type(given).__name__}"
        )
    most = {SparseEmbedding: 1, SparseEmbeddingBag: 3}.get(type(module), len(given))
    if not 1 <= len(given) <= most:
        raise ArgumentTypeError(
            f"feature {feature!r} needs one to {most} arguments for its {type(module).__name__}, "
            f"got {len(given)}"
        )
    return given


def _joins(module: Any) -> bool:
    """Whether calling the module would do no more than look up in a table that others join."""
    return (
        module._table is not None
        and type(module) in (SparseEmbedding, SparseEmbeddingBag)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not _has_any_global_hook()
    )
