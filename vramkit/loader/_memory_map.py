"""Mappings of a shared memory file at addresses that do not move."""

import ctypes
import errno
import functools
import mmap
import os
from concurrent.futures import ThreadPoolExecutor

from vramkit.errors import SystemCallError

_PAGE = mmap.PAGESIZE
_POPULATING_THREADS = min(8, len(os.sched_getaffinity(0)))
# To start a thread pays for no less.
_POPULATED_BY_ONE = 8 << 20
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
    libc.mremap.restype = ctypes.c_void_p
    libc.mremap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    libc.madvise.restype = ctypes.c_int
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
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


def map_file_privately(fd: int, offset: int, address: int, size_bytes: int) -> None:
    """Map part of a file at an address in use; what is written there does not reach the file.

    Raises:
        SystemCallError: The system refuses, for example at the limit of mappings.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE
    fixed = 0x10
    kind = mmap.MAP_PRIVATE | fixed
    if _libc().mmap(address, size_bytes, access, kind, fd, offset) == _FAILED:
        raise _error(f"mmap of {size_bytes:,} bytes of staging memory")


def map_own(size_bytes: int, alignment: int, *, inherited: bool) -> int:
    """Map private memory with huge pages where the system has some.

    Args:
        size_bytes: How much.
        alignment: Of the address, a power of two.
        inherited: Whether forked children get it.

    Raises:
        SystemCallError: The system refuses, for example at the limit of addresses.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    got = _libc().mmap(None, size_bytes + alignment, access, kind, -1, 0)
    if got == _FAILED or got is None:
        raise _error(f"mmap of {size_bytes:,} bytes of staging memory")
    address = -(-got // alignment) * alignment
    end = -(-(address + size_bytes) // _PAGE) * _PAGE
    if address > got:
        unmap(got, address - got)
    unmap(end, got + size_bytes + alignment - end)
    # Kernels without huge pages refuse this.
    _libc().madvise(address, end - address, mmap.MADV_HUGEPAGE)
    if not inherited:
        _libc().madvise(address, end - address, mmap.MADV_DONTFORK)
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


def populate(address: int, size_bytes: int) -> None:
    """Give a mapping its memory now, large ones by several threads.

    Raises:
        SystemCallError: There is no memory.
    """
    parts = min(_POPULATING_THREADS, max(1, size_bytes // _POPULATED_BY_ONE))
    step = -(-size_bytes // parts // _PAGE) * _PAGE
    pieces = [(address + at, min(step, size_bytes - at)) for at in range(0, size_bytes, step)]
    failures = _populate_by_threads(pieces) if len(pieces) > 1 else {_populate_one(pieces[0])}
    # A kernel before 5.14 does not know the advice; the pages come when they are first written.
    failures -= {0, errno.EINVAL}
    if failures:
        number = failures.pop()
        raise SystemCallError(
            number, f"populating {size_bytes:,} bytes of staging memory: {os.strerror(number)}"
        )


def _populate_by_threads(pieces: list[tuple[int, int]]) -> set[int]:
    try:
        with ThreadPoolExecutor(len(pieces)) as pool:
            return set(pool.map(_populate_one, pieces))
    except RuntimeError:
        # No thread can be started, or the interpreter is about to end.
        return {_populate_one(piece) for piece in pieces}


def _populate_one(piece: tuple[int, int]) -> int:
    populate_write = 23
    failed = _libc().madvise(*piece, populate_write)
    return ctypes.get_errno() if failed else 0


def make_private(address: int, size_bytes: int) -> None:
    """Put a private copy in the place of a mapping, at the same address.

    Raises:
        SystemCallError: There is no memory for it.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    copy = _libc().mmap(None, size_bytes, access, kind, -1, 0)
    if copy == _FAILED or copy is None:
        raise _error(f"mmap of {size_bytes:,} bytes for a copy of a batch")
    ctypes.memmove(copy, address, size_bytes)
    may_move, fixed = 1, 2
    if _libc().mremap(copy, size_bytes, size_bytes, may_move | fixed, address) == _FAILED:
        raise _error(f"mremap of {size_bytes:,} bytes of a copy of a batch")


def discard(fd: int, offset: int, size_bytes: int) -> None:
    """Give the memory of part of a file back; its contents are lost."""
    keep_size, punch_hole = 1, 2
    _libc().fallocate(fd, keep_size | punch_hole, offset, size_bytes)


def _error(what: str) -> SystemCallError:
    number = ctypes.get_errno()
    return SystemCallError(number, f"{what}: {os.strerror(number)}")
