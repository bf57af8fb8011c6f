"""A pool's memory for other libraries: RMM (cuDF, cuML) and CuPy.

Both hand over the CUDA stream that memory is for. Streams that PyTorch did not make may be
destroyed while their blocks live, so the pool is told of each before a block of it. A free names
a stream too, one that is there: so the pool can have an event for others to wait for. The callbacks
are native (csrc/bind/python/python_memory.cpp).
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from vramkit._core import CorePool, callback
from vramkit.errors import MissingExtraError

if TYPE_CHECKING:
    import cupy
    import rmm


class RmmMemory:
    """What RMM's callbacks work on.

    Args:
        core: The pool.
        keeper: What must live as long: the pool's object, or the pool would close when it is empty.
    """

    def __init__(self, core: CorePool, keeper: object) -> None:
        """Keep both."""
        self._route = core.route
        self._keeper = keeper


class CupyMemory(RmmMemory):
    """What CuPy's callbacks work on.

    Args:
        core: The pool.
        keeper: As for RMM.
        ordinal: The pool's CUDA device.
        current_stream: CuPy's function for its current stream.
    """

    def __init__(
        self,
        core: CorePool,
        keeper: object,
        *,
        ordinal: int,
        current_stream: "Callable[[], cupy.cuda.Stream]",
    ) -> None:
        """Start with no block."""
        super().__init__(core, keeper)
        self.ordinal = ordinal
        self.current_stream = current_stream
        self.streams: dict[int, cupy.cuda.Stream] = {}


def rmm_resource(core: CorePool, keeper: object) -> "rmm.mr.CallbackMemoryResource":
    """An RMM resource over the pool, which keeps ``keeper`` alive.

    Raises:
        MissingExtraError: RMM is not installed.
    """
    rmm, memory = rmm_module(), RmmMemory(core, keeper)
    return rmm.mr.CallbackMemoryResource(
        callback("rmm_allocate", memory), callback("rmm_free", memory)
    )


def cupy_allocator(
    core: CorePool, keeper: object, *, ordinal: int
) -> "Callable[[int], cupy.cuda.MemoryPointer]":
    """An allocator for ``cupy.cuda.set_allocator``, which keeps ``keeper`` alive.

    Raises:
        MissingExtraError: CuPy is not installed.
    """
    cuda = _import("cupy", extra="cupy").cuda
    memory = CupyMemory(core, keeper, ordinal=ordinal, current_stream=cuda.get_current_stream)
    allocator: Callable[[int], cupy.cuda.MemoryPointer] = cuda.PythonFunctionAllocator(
        callback("cupy_allocate", memory), callback("cupy_free", memory)
    ).malloc
    return allocator


@functools.cache
def rmm_module() -> ModuleType:
    """The package ``rmm``.

    Raises:
        MissingExtraError: It is not installed, with the command that installs it.
    """
    return _import("rmm", extra="rmm")


def _import(name: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise MissingExtraError(
            f"this needs the package {name}, which cannot be imported ({err}); install it with: "
            f"pip install 'vramkit[{extra}]'",
            name=name,
        ) from err
