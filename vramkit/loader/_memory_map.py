"""Mappings of a shared memory file at addresses that do not move."""

import ctypes
import functools
import mmap
import os

from vramkit.errors import SystemCallError

_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.fallocate.restype = ctypes.c_int
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return libc


def map_file(fd: int, offset: int, size_bytes: int) -> int:
    """Map part of a file, shared and writable, and return its address.

    Raises:
        SystemCallError: The system refuses, for example at the limit of mappings or of addresses.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc().mmap(None, size_bytes, access, mmap.MAP_SHARED, fd, offset)
    if address == _FAILED or address is None:
        raise _error(f"mmap of {size_bytes:,} bytes of staging memory")
    return int(address)


def unmap(address: int, size_bytes: int) -> None:
    """End a mapping."""
    _libc().munmap(address, size_bytes)


def commit(fd: int, offset: int, size_bytes: int) -> None:
    """Give part of a file its memory now, so that a later write cannot fail for want of it.

    Raises:
        SystemCallError: There is no memory, or the file may not become so large (``ulimit -f``).
    """
    try:
        os.posix_fallocate(fd, offset, size_bytes)
    except OSError as err:
        raise SystemCallError(
            err.errno, f"fallocate of {size_bytes:,} bytes of staging memory: {err.strerror}"
        ) from err


def discard(fd: int, offset: int, size_bytes: int) -> None:
    """Give the memory of part of a file back; its contents are lost."""
    keep_size, punch_hole = 1, 2
    _libc().fallocate(fd, keep_size | punch_hole, offset, size_bytes)


def _error(what: str) -> SystemCallError:
    number = ctypes.get_errno()
    return SystemCallError(number, f"{what}: {os.strerror(number)}")
