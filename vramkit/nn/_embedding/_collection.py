"""Many tables in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.nn._embedding._bag import SparseEmbeddingBag
from vramkit.nn._embedding._embedding import SparseEmbedding


class SparseEmbeddingCollection(nn.Module):
    """Serves the features of a model from several tables in one call.

    Args:
        tables: :class:`SparseEmbedding` and :class:`SparseEmbeddingBag` modules by name.
        features: For each feature, the name of its table; features may share one. By default, each
            table serves the feature of its own name.

    Raises:
        InvalidArgumentError: A feature names no table; in forward, features are missing or unknown.
        ArgumentTypeError: A table is neither of the two modules.

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

    def __init__(
        self,
        tables: Mapping[str, SparseEmbedding | SparseEmbeddingBag],
        *,
        features: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        for name, table in tables.items():
            if not isinstance(table, SparseEmbedding | SparseEmbeddingBag):
                raise ArgumentTypeError(
                    f"table {name!r} must be a SparseEmbedding or a SparseEmbeddingBag, got "
                    f"{type(table).__name__}"
                )
        self.tables = nn.ModuleDict(tables)
        self.features = {name: name for name in tables} if features is None else dict(features)
        for feature, name in self.features.items():
            if name not in tables:
                raise InvalidArgumentError(
                    f"feature {feature!r} names the table {name!r}; there are {sorted(tables)}"
                )

    def forward(self, inputs: Mapping[str, Tensor | Sequence[Tensor | None]]) -> dict[str, Tensor]:
        """Look up every feature.

        Args:
            inputs: For each feature, ids, or the arguments of its table's ``forward``:
                ``(ids, offsets)`` or ``(ids, offsets, per_sample_weights)``.
        """
        if inputs.keys() != self.features.keys():
            raise InvalidArgumentError(
                f"the inputs must be {sorted(self.features)}, got {sorted(inputs)}"
            )
        found = {}
        for feature, name in self.features.items():
            given = inputs[feature]
            arguments = (given,) if isinstance(given, Tensor) else given
            found[feature] = self.tables[name](*arguments)
        return found
