"""Memory that borders on nothing."""

import ctypes
import mmap

import torch


def tensor_with_own_mapping(size_bytes: int) -> torch.Tensor:
    """A tensor of bytes, whole pages, in a private mapping between pages without access.

    The C library may put large blocks into its heap, and the system joins neighbouring mappings.
    """
    page = mmap.PAGESIZE
    assert size_bytes % page == 0
    pages = mmap.mmap(-1, size_bytes + 2 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(pages, dtype=torch.uint8, offset=page, count=size_bytes)
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (tensor.data_ptr() - page, tensor.data_ptr() + size_bytes):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    return tensor
