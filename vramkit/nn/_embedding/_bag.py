"""Sums, means and maxima of rows: nn.EmbeddingBag."""

from __future__ import annotations

from typing import Any, Literal, Self, Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.nn._embedding._base import EmbeddingModule
from vramkit.nn._embedding._config import TableOptions
from vramkit.nn._embedding._input import (
    NOTHING,
    bounds_of,
    check_module,
    check_tensor,
    int64_ids,
    matrix_shape,
)
from vramkit.nn._embedding._lookup import check_sparse_gradient, look_up
from vramkit.nn._embedding._request import MODES, Asked, Request, check_device

Mode = Literal["sum", "mean", "max"]


class SparseEmbeddingBag(EmbeddingModule):
    """``nn.EmbeddingBag`` whose memory grows with the rows in use, with the optimizer in backward.

    What is said of :class:`SparseEmbedding` holds here too.

    Args:
        num_embeddings: Number of rows, or None for an open id space of any int64.
        embedding_dim: Values in a row.
        max_norm: As for ``nn.EmbeddingBag``, like all arguments up to ``dtype``.
        norm_type: The p of that norm.
        scale_grad_by_freq: Divide gradients by the number of times that an id occurs.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        sparse: Sparse gradients; False is possible with ``optimizer=None`` only.
        _weight: Values of all rows.
        include_last_offset: The offsets have one more element, the number of ids.
        padding_idx: An id that belongs to no bag.
        device: Where the rows are: the CPU, or a CUDA device.
        dtype: As for :class:`SparseEmbedding`.
        **options: As for :class:`SparseEmbedding`.

    Shape:
        ``(N,)`` with offsets ``(B,)``, or ``(B, L)``, to ``(B, embedding_dim)``.

    Raises:
        InvalidArgumentError: As for :class:`SparseEmbedding`; offsets that do not fit.
        RowIndexError: In forward, an id outside a fixed table.
        TableFullError: In forward, the budget holds fewer rows than are needed.

    Example:
        >>> import torch
        >>> import vramkit
        >>> bag = vramkit.nn.SparseEmbeddingBag(None, 8, mode="sum", optimizer="rowwise_adagrad")
        >>> bag(torch.tensor([1, 2, 4, 5, 4]), torch.tensor([0, 2])).shape
        torch.Size([2, 8])
    """

    mode: str
    include_last_offset: bool

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: Mode = "mean",
        sparse: bool = True,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[TableOptions],
    ) -> None:
        super().__init__()
        if mode not in ("sum", "mean", "max"):
            raise InvalidArgumentError(f"mode must be 'sum', 'mean' or 'max', got {mode!r}")
        if mode == "max" and scale_grad_by_freq:
            raise InvalidArgumentError("scale_grad_by_freq is for mode 'sum' and 'mean', got 'max'")
        if mode == "max" and sparse and options.get("optimizer") is None:
            raise InvalidArgumentError(
                "mode='max': PyTorch has no sparse gradients with it; pass sparse=False, or a "
                "fused optimizer such as optimizer='adam'"
            )
        self.mode, self.include_last_offset = mode, include_last_offset
        self._set_up(
            (num_embeddings, embedding_dim),
            padding_idx=padding_idx,
            norm=(max_norm, norm_type),
            flags=(scale_grad_by_freq, sparse, False),
            weight=_weight,
            place=(device, dtype),
            options=options,
        )

    def _request(
        self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Asked:
        table = self._table
        assert table is not None
        bounds, layout = bounds_of(ids, offsets, with_last=self.include_last_offset)
        flat = int64_ids(ids)
        check_device(flat, table.config.device)
        factors = NOTHING if weights is None else self._factors(weights, ids)
        return Request(
            *(table, flat, bounds, factors, MODES[self.mode] + layout),
            *(self.max_norm or 0.0, self.norm_type, int(self.scale_grad_by_freq)),
        ), weights

    def _factors(self, weights: Tensor, ids: Tensor) -> Tensor:
        if self.mode != "sum":
            raise InvalidArgumentError(
                f"per_sample_weights are for mode='sum', this module has mode={self.mode!r}"
            )
        check_tensor("per_sample_weights", weights)
        if not weights.is_floating_point():
            raise ArgumentTypeError(
                f"per_sample_weights must be floating-point numbers, got {weights.dtype}; call "
                "per_sample_weights.float()"
            )
        if weights.device != ids.device:
            raise InvalidArgumentError(
                f"per_sample_weights are on {weights.device}, the ids are on {ids.device}; move "
                "one of them"
            )
        if weights.shape != ids.shape:
            raise InvalidArgumentError(
                f"per_sample_weights must have the shape of the ids, {tuple(ids.shape)}, got "
                f"{tuple(weights.shape)}"
            )
        return weights.detach().float().contiguous()

    def forward(
        self,
        input: Tensor,  # noqa: A002 - the name in torch
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Compute a sum, mean or maximum of rows for each bag."""
        if self._table is not None:
            request, weights = self._request(input, offsets, per_sample_weights)
            return look_up((request,), (weights,), train=self.training and not self.frozen)[0]
        if self.sparse:
            check_sparse_gradient(self.weight)
        return embedding_bag(
            *(input, self.weight, offsets, self.max_norm, self.norm_type, self.scale_grad_by_freq),
            *(self.mode, self.sparse, per_sample_weights, self.include_last_offset),
            self.padding_idx,
        )

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: Mode = "mean",
        sparse: bool = True,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        **options: Any,
    ) -> Self:
        """Build a module from the values of all rows, ``(rows, dim)``, as ``nn.EmbeddingBag``."""
        rows, dim = matrix_shape(embeddings)
        options.setdefault("device", embeddings.device)
        if options.get("optimizer") is None:
            options.setdefault("dtype", embeddings.dtype)
        module = cls(
            *(rows, dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, embeddings),
            *(include_last_offset, padding_idx),
            **options,
        )
        return module.requires_grad_(not freeze)

    @classmethod
    def from_embedding(cls, module: nn.EmbeddingBag, **options: Any) -> Self:
        """Build a module with the rows and arguments of an ``nn.EmbeddingBag``.

        Raises:
            ArgumentTypeError: ``module`` is something else.

        Example:
            >>> import torch, vramkit
            >>> plain = torch.nn.EmbeddingBag(5, 2)
            >>> bag = vramkit.nn.SparseEmbeddingBag.from_embedding(plain, optimizer="adam")
            >>> bag.mode
            'mean'
        """
        check_module(module, nn.EmbeddingBag, SparseEmbeddingBag)
        fused = options.get("optimizer") is not None
        if fused:
            options.setdefault("dtype", module.weight.dtype)
        dense = module.scale_grad_by_freq or module.mode == "max"
        result = cls.from_pretrained(
            *(module.weight.detach(), not module.weight.requires_grad, module.max_norm),
            *(module.norm_type, module.scale_grad_by_freq),
            mode=cast("Mode", module.mode),
            sparse=options.pop("sparse", fused or not dense),
            include_last_offset=module.include_last_offset,
            padding_idx=module.padding_idx,
            **options,
        )
        result._was_sparse = module.sparse
        return result

    def to_embedding(self) -> nn.EmbeddingBag:
        """Return an ``nn.EmbeddingBag`` with the same values; never-touched rows get theirs.

        Raises:
            InvalidArgumentError: An open id space has no last row.
        """
        weight = self.weight.detach() if self._table is None else self._whole_weight()
        module = nn.EmbeddingBag(
            *(len(weight), self.embedding_dim, self.max_norm, self.norm_type),
            *(self.scale_grad_by_freq, self.mode, self._sparse_again(), weight),
            *(self.include_last_offset, self.padding_idx),
        )
        return module.requires_grad_(not self.frozen)
