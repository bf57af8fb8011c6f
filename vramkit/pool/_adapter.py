"""Puts the pool core in front of PyTorch's CPU allocator, once in a process."""

import ctypes
import functools
import threading
from pathlib import Path

from vramkit import _build
from vramkit._core import library
from vramkit.errors import NativeLibraryError

_lock = threading.Lock()


def install_cpu() -> None:
    """Install the adapter unless it is there; it stays for the life of the process.

    Raises:
        NativeLibraryError: The adapter cannot be built or loaded, or refuses.
    """
    with _lock:
        _install_once()


@functools.cache
def _install_once() -> None:
    _install(_adapter_path())


def _adapter_path() -> Path:
    try:
        return _build.adapter_path("cpu")
    except _build.BuildError as err:
        raise NativeLibraryError(str(err)) from err


def _install(path: Path) -> None:
    # adapter_path() has asked this file which torch it is for.
    adapter = ctypes.CDLL(str(path))
    adapter.vramkit_adapter_install.restype = ctypes.c_char_p
    refusal = adapter.vramkit_adapter_install(library().vramkit_core())
    if refusal is not None:
        raise NativeLibraryError(f"the allocator adapter {path} refuses: {refusal.decode()}")
