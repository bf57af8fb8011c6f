"""One row for each id: nn.Embedding."""

from __future__ import annotations

from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from vramkit.nn._embedding._base import EmbeddingModule
from vramkit.nn._embedding._config import TableOptions
from vramkit.nn._embedding._input import NOTHING, check_module, int64_ids, matrix_shape
from vramkit.nn._embedding._lookup import check_sparse_gradient, look_up
from vramkit.nn._embedding._request import MODES, Asked, Request, check_device


class SparseEmbedding(EmbeddingModule):
    """``nn.Embedding`` whose memory grows with the rows in use, with the optimizer in backward.

    With ``optimizer=None``, the module has a plain ``weight`` with sparse gradients, for any
    optimizer of PyTorch. With a fused optimizer, rows get memory when they are first looked up in
    training, ``backward`` updates them when it ends, and there is no ``weight``.

    Args:
        num_embeddings: Number of rows, or None for an open id space of any int64.
        embedding_dim: Values in a row.
        padding_idx: As for ``nn.Embedding``, like all arguments up to ``dtype``.
        max_norm: Rows are scaled to this norm when they are looked up.
        norm_type: The p of that norm.
        scale_grad_by_freq: Divide gradients by the number of times that an id occurs.
        sparse: Sparse gradients; False is possible with ``optimizer=None`` only.
        _weight: Values of all rows.
        _freeze: Train nothing.
        device: Where the rows are: the CPU, or a CUDA device.
        dtype: float32, bfloat16, float16, or int8 with a scale for each row (fused only; the output
            is then float32). Updates are computed in float32 and rounded stochastically.
        **options: Of tables with a fused optimizer: ``optimizer`` (``"sgd"``, ``"adagrad"``,
            ``"rowwise_adagrad"``, ``"adam"``, lazy as ``torch.optim.SparseAdam``), ``lr``,
            ``betas``, ``eps``, ``lr_decay``, ``initial_accumulator_value``, ``placement`` on a CUDA
            device (``"device"``; ``"host"``, in host memory; ``"cached"``, the rows used last on
            the device), ``budget`` in bytes or as ``"1GiB"``, ``when_full`` (``"grow"``,
            ``"error"``, ``"evict_lru"``, ``"evict_lfu"``, or ``"spill"`` into host memory),
            ``seed`` and ``init_std`` of the initial values, which are normally distributed and
            depend on seed and id alone.

    Shape:
        Any shape of int64 or int32 to that shape and ``embedding_dim``.

    Raises:
        InvalidArgumentError: Arguments that contradict each other or cannot be honoured.
        UnsupportedDeviceError: A device that this version has no tables for.
        RowIndexError: In forward, an id outside a fixed table.
        TableFullError: In forward, the budget holds fewer rows than are needed, or host memory
            cannot be locked.
        TableUsageError: In forward under ``DistributedDataParallel``, unless ``optimizer=None`` and
            ``sparse=False``.

    Example:
        >>> import torch
        >>> import vramkit
        >>> table = vramkit.nn.SparseEmbedding(None, 16, optimizer="adam", lr=0.01)
        >>> table(torch.tensor([7, -3, 10**15])).sum().backward()
        >>> table.stats().rows_in_use
        3
    """

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = True,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[TableOptions],
    ) -> None:
        super().__init__()
        self._set_up(
            (num_embeddings, embedding_dim),
            padding_idx=padding_idx,
            norm=(max_norm, norm_type),
            flags=(scale_grad_by_freq, sparse, _freeze),
            weight=_weight,
            place=(device, dtype),
            options=options,
        )

    def _request(self, ids: Tensor) -> Asked:
        table = self._table
        assert table is not None
        flat = int64_ids(ids)
        check_device(flat, table.config.device)
        return Request(
            *(table, flat, NOTHING, NOTHING, MODES["none"]),
            *(self.max_norm or 0.0, self.norm_type, int(self.scale_grad_by_freq)),
        ), None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """Look up a row for each id."""
        if self._table is not None:
            request, _ = self._request(input)
            return look_up((request,), (None,), train=self.training and not self.frozen)[0]
        if self.sparse:
            check_sparse_gradient(self.weight)
        return embedding(
            *(input, self.weight, self.padding_idx, self.max_norm, self.norm_type),
            *(self.scale_grad_by_freq, self.sparse),
        )

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = True,
        **options: Any,
    ) -> Self:
        """Build a module from the values of all rows, ``(rows, dim)``, as ``nn.Embedding`` does.

        Example:
            >>> import torch, vramkit
            >>> table = vramkit.nn.SparseEmbedding.from_pretrained(torch.eye(3))
            >>> table(torch.tensor([1]))
            tensor([[0., 1., 0.]])
        """
        rows, dim = matrix_shape(embeddings)
        options.setdefault("device", embeddings.device)
        if options.get("optimizer") is None:
            options.setdefault("dtype", embeddings.dtype)
        return cls(
            *(rows, dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse),
            *(embeddings, freeze),
            **options,
        )

    @classmethod
    def from_embedding(cls, module: nn.Embedding, **options: Any) -> Self:
        """Build a module with the rows and arguments of an ``nn.Embedding``.

        Args:
            module: Where the values come from; they are copied into tables with a fused optimizer.
            **options: As for the class, ``dtype`` too.

        Raises:
            ArgumentTypeError: ``module`` is something else.

        Example:
            >>> import torch, vramkit
            >>> plain = torch.nn.Embedding(5, 2)
            >>> table = vramkit.nn.SparseEmbedding.from_embedding(plain, optimizer="adam")
            >>> bool((table(torch.arange(5)) == plain.weight).all())
            True
        """
        check_module(module, nn.Embedding, SparseEmbedding)
        fused = options.get("optimizer") is not None
        if fused:
            options.setdefault("dtype", module.weight.dtype)
        result = cls.from_pretrained(
            *(module.weight.detach(), not module.weight.requires_grad, module.padding_idx),
            *(module.max_norm, module.norm_type, module.scale_grad_by_freq),
            sparse=options.pop("sparse", fused or not module.scale_grad_by_freq),
            **options,
        )
        result._was_sparse = module.sparse
        return result

    def to_embedding(self) -> nn.Embedding:
        """Return an ``nn.Embedding`` with the same values; never-touched rows get theirs.

        Raises:
            InvalidArgumentError: An open id space has no last row.
        """
        weight = self.weight.detach() if self._table is None else self._whole_weight()
        return nn.Embedding(
            *(len(weight), self.embedding_dim, self.padding_idx, self.max_norm, self.norm_type),
            *(self.scale_grad_by_freq, self._sparse_again()),
            _weight=weight,
            _freeze=self.frozen,
        )
