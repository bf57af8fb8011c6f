"""The layout in which a tensor takes the least memory."""

from __future__ import annotations

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
    zeros become zero.

    Args:
        tensor: A strided, COO or CSR tensor of at least one dimension, of any dtype and device.

    Returns:
        The tensor in the smallest layout, with the bytes of all; without a gradient.

    Raises:
        ArgumentTypeError: The tensor has another layout, or no dimension.

    Example:
        >>> import torch
        >>> import vramkit.sparse
        >>> matrix = torch.zeros(1000, 1000)
        >>> matrix[3, 5] = 1.0
        >>> print(vramkit.sparse.compress(matrix))
        coo: 20 B, saves 3.8 MiB of 3.8 MiB
    """
    allowed = (torch.strided, torch.sparse_coo, torch.sparse_csr)
    if not isinstance(tensor, Tensor) or tensor.layout not in allowed or tensor.ndim == 0:
        what = f"layout {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ArgumentTypeError(
            f"compress takes a strided, COO or CSR tensor of at least one dimension, got {what}"
        )
    plain = tensor.detach()
    dense = plain if plain.layout is torch.strided else plain.to_dense()
    values = dense[dense != 0]
    index = torch.int32 if max(values.numel(), *dense.shape) < 1 << 31 else torch.int64
    sizes = {
        "dense": dense.numel() * dense.element_size(),
        "coo": values.numel() * (8 * dense.ndim + dense.element_size()),
    }
    if dense.ndim == 2:
        entry = index.itemsize + dense.element_size()
        sizes["csr"] = values.numel() * entry + (len(dense) + 1) * index.itemsize
    layout = min(sizes, key=lambda name: (sizes[name], name != "dense"))
    return Compressed(_converted(dense, values, layout, index), layout, sizes)


def _converted(dense: Tensor, values: Tensor, layout: str, index: torch.dtype) -> Tensor:
    if layout == "dense":
        return dense
    positions = (dense != 0).nonzero().T.contiguous()
    if layout == "coo":
        return torch.sparse_coo_tensor(
            positions, values, dense.shape, is_coalesced=True, check_invariants=False
        )
    starts = torch.zeros(len(dense) + 1, dtype=torch.int64, device=dense.device)
    starts[1:] = torch.bincount(positions[0], minlength=len(dense)).cumsum(0)
    return torch.sparse_csr_tensor(
        *(starts.to(index), positions[1].to(index), values, dense.shape), check_invariants=False
    )
