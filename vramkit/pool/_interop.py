"""A pool's memory for other libraries: RMM (cuDF, cuML) and CuPy.

Both hand over the CUDA stream that memory is for. Streams that PyTorch did not make may be
destroyed while their blocks live, so the pool is told of each before its first block. A free names
a stream too, one that is there: so the pool can have an event for others to wait for.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from vramkit._core import CorePool
from vramkit.errors import InvalidArgumentError, VramkitError

if TYPE_CHECKING:
    import cupy
    import rmm

# Handles of CUDA's own streams.
_DEFAULT = 0
_LEGACY_DEFAULT = 1  # the same stream
_PER_THREAD_DEFAULT = 2  # another stream in each thread


class StreamMemory:
    """Blocks of a pool for streams of other libraries.

    Args:
        core: The pool.
        keeper: What must live as long: the pool's object, or the pool would close when it is empty.
    """

    def __init__(self, core: CorePool, keeper: object) -> None:
        """Start with no stream known."""
        self._core = core
        self._keeper = keeper
        self._declared: set[int] = set()

    def allocate(self, size_bytes: int, stream: int) -> int:
        """The address of a new block; 0 for no bytes.

        Raises:
            PoolOutOfMemoryError: The pool has no room; it is a ``MemoryError``.
            InvalidArgumentError: The stream is the per-thread default stream.
        """
        if size_bytes == 0:
            return 0
        if stream == _PER_THREAD_DEFAULT:
            raise InvalidArgumentError(
                "a vramkit pool cannot serve CUDA's per-thread default stream, whose handle stands "
                "for another stream in each thread; use the default stream or one that you made"
            )
        return self._core.alloc(size_bytes, stream=self._known(stream))

    def free(self, address: int, stream: int) -> None:
        """Free a block, after the work that is queued on ``stream``.

        That stream comes after all work on the block, whose own stream may be gone. Never raises:
        who frees cannot handle that.
        """
        if address == 0:
            return
        try:
            self._core.free_on(address, self._known(stream))
        except VramkitError as err:
            print(f"vramkit: freeing {address:#x} failed: {err}", file=sys.stderr)

    def _known(self, stream: int) -> int:
        if stream == _LEGACY_DEFAULT:
            return _DEFAULT
        if stream != _DEFAULT and stream not in self._declared:
            self._core.declare_short_lived_stream(stream)
            self._declared.add(stream)
        return stream


def rmm_resource(memory: StreamMemory) -> "rmm.mr.CallbackMemoryResource":
    """An RMM resource over the pool.

    Raises:
        ImportError: RMM is not installed.
    """

    def allocate(size_bytes: int, stream: "rmm.pylibrmm.stream.Stream") -> int:
        return memory.allocate(size_bytes, stream.__cuda_stream__()[1])

    def free(address: int, _size_bytes: int, stream: "rmm.pylibrmm.stream.Stream") -> None:
        handle = stream.__cuda_stream__()[1]
        if handle == _PER_THREAD_DEFAULT:
            # The pool could not wait for it later: then the handle may stand for another one.
            stream.synchronize()
            handle = _DEFAULT
        memory.free(address, handle)

    return rmm_module().mr.CallbackMemoryResource(allocate, free)


def cupy_allocator(
    memory: StreamMemory, ordinal: int
) -> "Callable[[int], cupy.cuda.MemoryPointer]":
    """An allocator for ``cupy.cuda.set_allocator``.

    Raises:
        ImportError: CuPy is not installed.
    """
    cuda = _import("cupy", extra="cupy").cuda
    # CuPy destroys a stream with its object, arrays or not; the free shall name one that is there.
    streams: dict[int, cupy.cuda.Stream] = {}

    def allocate(size_bytes: int, device: int) -> int:
        if device != ordinal:
            raise InvalidArgumentError(
                f"the current device of CuPy is {device}, and the pool is on cuda:{ordinal}; "
                f"allocate inside `with cupy.cuda.Device({ordinal}):`"
            )
        stream = cuda.get_current_stream()
        address = memory.allocate(size_bytes, stream.ptr)
        streams[address] = stream
        return address

    def free(address: int, _device: int) -> None:
        # The block's own stream counts, as in CuPy's own pool: at a free the current one means
        # nothing. Taken out first: once it is free, another thread may get the address.
        stream = streams.pop(address, None)
        memory.free(address, stream.ptr if stream is not None else _DEFAULT)
        del stream

    allocator: Callable[[int], cupy.cuda.MemoryPointer] = cuda.PythonFunctionAllocator(
        allocate, free
    ).malloc
    return allocator


@functools.cache
def rmm_module() -> ModuleType:
    """The package ``rmm``.

    Raises:
        ImportError: It is not installed, with the command that installs it.
    """
    return _import("rmm", extra="rmm")


def _import(name: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise ImportError(
            f"this needs the package {name}, which cannot be imported ({err}); install it with: "
            f"pip install 'vramkit[{extra}]'",
            name=name,
        ) from err
