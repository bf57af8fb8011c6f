"""The layout in which a tensor takes the least memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vramkit.errors import ArgumentTypeError
from vramkit.units import format_mib


@dataclass(frozen=True)
class Compressed:
    """A tensor in the smallest of the layouts that were considered.

    Attributes:
        tensor: The tensor, in ``layout``; the given one if that is dense already.
        layout: ``"coo"``, ``"csr"`` or ``"dense"``.
        bytes_by_layout: What the tensor takes in each layout; CSR is for two dimensions only.
    """

    tensor: Tensor
    layout: str
    bytes_by_layout: dict[str, int]

    @property
    def saved_bytes(self) -> int:
        """Bytes less than dense."""
        return self.bytes_by_layout["dense"] - self.bytes_by_layout[self.layout]

    def __str__(self) -> str:
        dense, chosen = self.bytes_by_layout["dense"], self.bytes_by_layout[self.layout]
        if self.layout == "dense":
            others = [size for name, size in self.bytes_by_layout.items() if name != "dense"]
            return f"dense: {format_mib(dense)}; sparse would take {format_mib(min(others))}"
        saved = f"saves {format_mib(self.saved_bytes)} of {format_mib(dense)}"
        return f"{self.layout}: {format_mib(chosen)}, {saved}"


def compress(tensor: Tensor) -> Compressed:
    """Choose COO, CSR or dense for a tensor, by the bytes that each takes.

    Indices are int64 in COO and, where they fit, int32 in CSR. NaN counts as not zero, negative
    zeros become zero. A sparse tensor is made dense only if that is the smallest layout.

    Args:
        tensor: A strided, COO or CSR tensor of at least one dimension, of any device and dtype that
            is not quantized.

    Returns:
        The tensor in the smallest layout, with the bytes of all; without a gradient.

    Raises:
        ArgumentTypeError: The tensor has another layout, no dimension or no values, or is nested or
            quantized.

    Example:
        >>> import torch
        >>> import vramkit.sparse
        >>> matrix = torch.zeros(1000, 1000)
        >>> matrix[3, 5] = 1.0
        >>> print(vramkit.sparse.compress(matrix))
        coo: 20 B, saves 3.8 MiB of 3.8 MiB
    """
    _check(tensor)
    plain = tensor.detach()
    is_strided = plain.layout is torch.strided
    found = None if is_strided else _entries(plain)
    count = int((plain != 0).sum()) if found is None else found[1].numel()
    shape, each = plain.shape, plain.dtype.itemsize
    index = torch.int32 if max(count, *shape) < 1 << 31 else torch.int64
    sizes = {"dense": math.prod(shape) * each, "coo": count * (8 * len(shape) + each)}
    if len(shape) == 2:
        entry = index.itemsize + each
        sizes["csr"] = count * entry + (shape[0] + 1) * index.itemsize
    layout = min(sizes, key=lambda name: (sizes[name], name != "dense"))
    if layout == "dense":
        return Compressed(plain if is_strided else plain.to_dense(), layout, sizes)
    positions, values = _entries(plain) if found is None else found
    return Compressed(_sparse(positions, values, shape, layout, index), layout, sizes)


def _check(tensor: object) -> None:
    allowed = (torch.strided, torch.sparse_coo, torch.sparse_csr)
    what = type(tensor).__name__
    if isinstance(tensor, Tensor):
        if tensor.is_nested or tensor.is_quantized:
            what = "a nested tensor" if tensor.is_nested else "a quantized tensor"
        elif tensor.device.type == "meta":
            what = "a tensor on meta, which has no values"
        elif tensor.layout in allowed and tensor.ndim > 0:
            return
        else:
            what = f"layout {tensor.layout} of {tensor.ndim} dimensions"
    raise ArgumentTypeError(
        f"compress takes a strided, COO or CSR tensor of at least one dimension, got {what}"
    )


def _entries(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a tensor is not zero, ``(dimensions, entries)`` in order, and its values."""
    if tensor.layout is torch.strided:
        is_entry = tensor != 0
        return is_entry.nonzero().T.contiguous(), tensor[is_entry]
    stored = tensor.to_sparse_coo().coalesce()
    values = stored.values()  # zeros too, and with dense dimensions after the first
    is_entry = values != 0
    first, *others = is_entry.nonzero().T
    positions = [*stored.indices()[:, first], *others]
    return torch.stack(positions), values[is_entry]


def _sparse(
    positions: Tensor, values: Tensor, shape: torch.Size, layout: str, index: torch.dtype
) -> Tensor:
    if layout == "coo":
        return torch.sparse_coo_tensor(
            positions, values, shape, is_coalesced=True, check_invariants=False
        )
    starts = torch.zeros(shape[0] + 1, dtype=torch.int64, device=values.device)
    starts[1:] = torch.bincount(positions[0], minlength=shape[0]).cumsum(0)
    return torch.sparse_csr_tensor(
        *(starts.to(index), positions[1].to(index), values, shape), check_invariants=False
    )
