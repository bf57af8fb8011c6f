"""Sparse tensors that take less memory than dense ones."""

from vramkit.sparse._compress import Compressed, compress

__all__ = ["Compressed", "compress"]
