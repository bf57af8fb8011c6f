"""Puts the pool core in front of PyTorch's allocators, once in a process."""

import ctypes
import functools
import gc
import os
import threading
from pathlib import Path
from types import SimpleNamespace

from vramkit import _build
from vramkit._core import library
from vramkit.errors import NativeLibraryError

# Reentrant: a signal handler may make a pool while its own thread is making one.
_installing = SimpleNamespace(lock=threading.RLock())


def _renew_lock() -> None:
    """In a forked child: the thread that held the lock is not there."""
    _installing.lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def install_cpu() -> None:
    """Install the adapter of CPU tensors unless it is there; it stays for the process's life.

    Raises:
        NativeLibraryError: The adapter cannot be built or loaded, or refuses.
    """
    with _installing.lock:
        _install_once("cpu")


def install_cuda() -> None:
    """Install the adapter of CUDA tensors likewise; CUDA must have been started.

    Raises:
        NativeLibraryError: The adapter cannot be built or loaded, or refuses.
    """
    with _installing.lock:
        _install_once("cuda")


@functools.cache
def _install_once(kind: str) -> None:
    adapter = _install(_adapter_path(kind))
    _adopt_storages(adapter)


def _adapter_path(kind: str) -> Path:
    try:
        return _build.adapter_path(kind)
    except _build.BuildError as err:
        raise NativeLibraryError(f"no allocator adapter for {kind} tensors: {err}") from err


def _install(path: Path) -> ctypes.CDLL:
    # adapter_path() has asked this file which torch it is for.
    adapter = ctypes.CDLL(str(path))
    adapter.vramkit_adapter_install.restype = ctypes.c_char_p
    refusal = adapter.vramkit_adapter_install(library().vramkit_core())
    if refusal is not None:
        raise NativeLibraryError(f"the allocator adapter {path} refuses: {refusal.decode()}")
    return adapter


def _adopt_storages(adapter: ctypes.CDLL) -> int:
    """Let the storages that are there already grow by the adapter; returns how many there were.

    A storage keeps the allocator of its time: one that was emptied by ``resize_(0)``, as FSDP does,
    would grow again outside every pool. Found are those of tensors that Python knows.
    """
    import torch

    adopt = adapter.vramkit_adapter_adopt
    adopt.restype, adopt.argtypes = ctypes.c_int32, [ctypes.c_void_p]
    adopted = 0
    with torch._C.DisableTorchFunctionSubclass():
        for thing in gc.get_objects():
            # type(), not isinstance(): that would ask proxies for the class they stand for.
            if not issubclass(type(thing), torch.Tensor):
                continue
            try:
                storage = torch.Tensor.untyped_storage(thing)
            except (NotImplementedError, RuntimeError, ValueError):
                continue  # sparse, nested and other tensors without a storage
            adopted += adopt(storage._cdata)
    return adopted
