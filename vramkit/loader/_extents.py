"""The whole memory of which an array or a tensor is a part."""

import ctypes
import functools
import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vramkit.loader._columns import Segment

_PAGE = mmap.PAGESIZE
# Before a block that glibc has mapped for itself lie two words: how many bytes before them are
# unused, for the block's alignment, and the size from there on, of which this bit is set.
_WORD = ctypes.sizeof(ctypes.c_size_t)
_MAPPED = 2


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of addresses.

    Attributes:
        begin: The first address.
        end: The address after the last.
        is_whole: Whether they are all that was allocated there, as far as can be told.
    """

    begin: int
    end: int
    is_whole: bool


def extent_of(segment: Segment) -> Extent:
    """Return the whole memory of which rows are a part, or what is known of it."""
    owner = segment.owner
    if isinstance(owner, torch.Tensor):
        return _extent_of_tensor(owner)
    if isinstance(owner, np.ndarray):
        return _extent_of_array(owner)
    begin = segment.address
    return Extent(begin, begin + segment.rows * segment.row_stride_bytes, is_whole=False)


def _extent_of_tensor(tensor: torch.Tensor) -> Extent:
    storage = tensor.untyped_storage()
    begin = storage.data_ptr()
    end = begin + storage.nbytes()
    # PyTorch resizes memory of its own allocator, and no other.
    return Extent(begin, end, is_whole=True) if storage.resizable() else _block_at(begin, end)


def _extent_of_array(array: np.ndarray[Any, Any]) -> Extent:
    base: Any = array.base
    while isinstance(base, (np.ndarray, memoryview)):
        array, base = (base, base.base) if isinstance(base, np.ndarray) else (array, base.obj)
    if isinstance(base, torch.Tensor):
        return _extent_of_tensor(base)
    if isinstance(base, mmap.mmap):
        array = np.frombuffer(base, np.uint8)
        begin = array.__array_interface__["data"][0]
        return Extent(begin, begin + len(array), is_whole=True)
    begin, end = _span_of(array)
    # With strides of its own making, an array does not span all that it owns.
    if base is None and array.flags.owndata and array.flags.forc:
        return Extent(begin, end, is_whole=True)
    return _block_at(begin, end)


def _span_of(array: np.ndarray[Any, Any]) -> tuple[int, int]:
    begin = end = array.__array_interface__["data"][0]
    for size, stride in zip(array.shape, array.strides, strict=True):
        begin += min(0, (size - 1) * stride)
        end += max(0, (size - 1) * stride)
    return begin, end + array.itemsize


def _block_at(begin: int, end: int) -> Extent:
    """What the C library says of memory whose owner does not tell."""
    words = begin - 2 * _WORD
    # On the page of the first element, so that they can be read.
    if _is_glibc() and words // _PAGE == begin // _PAGE and words % _WORD == 0:
        unused = ctypes.c_size_t.from_address(words).value
        size = ctypes.c_size_t.from_address(words + _WORD).value
        last = words + size - _MAPPED
        if unused == words % _PAGE and size % 8 == _MAPPED and last % _PAGE == 0 and last >= end:
            return Extent(begin, last, is_whole=True)
    return Extent(begin, end, is_whole=False)


@functools.cache
def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):
        return False
