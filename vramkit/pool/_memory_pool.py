"""The memory pool as a context manager."""

import contextlib
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Literal,
    NoReturn,
    ParamSpec,
    Self,
    SupportsIndex,
    TypeVar,
)

from vramkit._core import natively_entered, open_tokens
from vramkit.errors import (
    ArgumentTypeError,
    CapacityError,
    ForkedPoolError,
    InvalidArgumentError,
    PoolBusyError,
    PoolClosedError,
    PoolOutOfMemoryError,
    UnsupportedDeviceError,
)
from vramkit.pool import _capacity, _close, _cuda, _interop, _stacks
from vramkit.pool._create import create_core
from vramkit.pool._decorate import decorated
from vramkit.pool._device import pool_device
from vramkit.pool._report import (
    PoolBlock,
    PoolStats,
    format_summary,
    make_block,
    make_stats,
)
from vramkit.pool._scopes import OutsideScope
from vramkit.units import counted, format_mib

if TYPE_CHECKING:
    import cupy
    import torch
    from rmm.mr import CallbackMemoryResource, DeviceMemoryResource

_P = ParamSpec("_P")
_R = TypeVar("_R")


@natively_entered
class MemoryPool:
    """A memory budget of its own for PyTorch tensors.

    Inside ``with pool:`` every tensor of the pool's device that the process allocates, in any
    thread, comes from the pool. Scopes nest; when several pools' scopes are open the latest
    wins; they may be left in any order and from any thread. Tensors may outlive the scope and
    the pool object: their memory stays valid, and what the pool holds is given back with its
    last tensor. A pool is also a decorator: each call of the function opens a scope.

    When the pool is full, allocating raises ``torch.OutOfMemoryError`` with an explanation.

    On CUDA, what a CUDA graph allocates while it is captured, and what is allocated inside
    ``torch.cuda.use_mem_pool``, goes to PyTorch's private pools and not to this one.

    Args:
        capacity: The most the pool may hold: bytes, a text such as ``"2GiB"``, or a float in
            (0, 1]: that part of the memory free now on the device. Rounded down to whole pages.
            On CUDA the device's memory is taken at once.
        device: Whose tensors: ``"cuda"`` (the current CUDA device), ``"cuda:1"``, ``"cpu"``, a
            ``torch.device``, or the number of a CUDA device. ``None`` is the current accelerator,
            or the CPU where there is none.
        overflow: ``"error"``, or ``"native"``: what does not fit comes from PyTorch's own
            allocator, is counted, and is warned about once.
        record_stacks: Note the Python stack of each allocation, for the explanation and for
            :meth:`snapshot`. Costs some microseconds an allocation.
        page_bytes: Size of the pages that are stitched together when no hole is large enough:
            a power of two of at least 64 KiB, on CUDA of 2 MiB. ``None`` is 2 MiB on the CPU and
            with ``upstream``; on CUDA it is 2 MiB below a capacity of 8 GiB, 4 MiB below 32 GiB,
            8 MiB below 64 GiB, and so on.
        upstream: An RMM resource that gives the capacity, in one piece, once; it gets it back
            after the pool has closed. Such a pool neither stitches nor changes its size.

    Raises:
        ArgumentTypeError: An argument is of the wrong type.
        CapacityError: The capacity cannot be read, or the device does not have it.
        InvalidArgumentError: Another argument can never work.
        UnsupportedDeviceError: There is no pool for the device.
        NativeLibraryError: A native library is missing and cannot be built.
        RuntimeError: CUDA was started before this process was forked.

    >>> import torch
    >>> with MemoryPool("64MiB", device="cpu") as pool:
    ...     x = torch.ones(1024, 1024)
    >>> pool.stats().live_bytes
    4194304
    >>> float(x.sum())
    1048576.0
    """

    def __init__(
        self,
        capacity: SupportsIndex | str | float,
        *,
        device: "torch.device | str | int | None" = None,
        overflow: Literal["error", "native"] = "error",
        record_stacks: bool = False,
        page_bytes: SupportsIndex | str | None = None,
        upstream: "DeviceMemoryResource | None" = None,
    ) -> None:
        """Make the pool; on the CPU physical memory is taken as tensors need it."""
        if overflow not in ("error", "native"):
            raise InvalidArgumentError(f"overflow must be 'error' or 'native', got {overflow!r}")
        self._device = pool_device(device)
        created = create_core(
            capacity,
            device=self._device,
            page_bytes=page_bytes,
            overflow_native=overflow == "native",
            upstream=upstream,
        )
        self._core = created.core
        self._route = self._core.route
        self._page_bytes = created.page_bytes
        self._overflow = overflow
        self._has_upstream = upstream is not None
        self._note_capacity()
        self._closed = False
        self._active = False
        if upstream is not None:
            # At process exit other threads may still use the memory; the system takes it back.
            weakref.finalize(self, _close.release, self._core).atexit = False
        if record_stacks:
            _stacks.record_stacks_of(self._core)

    # ---- scopes

    def __enter__(self) -> Self:
        """Route the device's allocations of the whole process to this pool.

        Raises:
            PoolClosedError: The pool is closed.
            ForkedPoolError: The pool belongs to the parent of this process.
        """
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the scope that this thread or task opened last.

        Raises:
            ScopeError: No scope is open.
        """
        raise NotImplementedError

    def activate(self) -> None:
        """Open a scope until :meth:`deactivate`, for instance across the cells of a notebook.

        Does nothing where such a scope is open already, so that you can run a cell twice. In a
        script, use ``with pool:``, which also ends when an exception passes.

        Raises:
            PoolClosedError: The pool is closed.

        >>> import torch
        >>> pool = MemoryPool("64MiB", device="cpu")
        >>> pool.activate()
        >>> x = torch.ones(256)
        >>> pool.deactivate()
        >>> pool.stats().live_bytes
        1024
        """
        if self._active:
            return
        # The flag first, here and in deactivate(): between it and the native call no signal handler
        # can run, so that the flag says what is so.
        before = open_tokens.get()[-1:]
        self._active = True
        try:
            self.__enter__()
        except BaseException:
            # A signal handler may raise after the scope has opened.
            self._active = open_tokens.get()[-1:] != before
            raise

    def deactivate(self) -> None:
        """Close the scope that :meth:`activate` opened; does nothing where none is open."""
        if self._active:
            self._active = False
            self.__exit__(None, None, None)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Wrap a function or a coroutine function: each call runs in a scope of this pool.

        Raises:
            ArgumentTypeError: A generator, whose scope would stay open between its values; a
                function with a cache; or a class, a module or another object that is more than
                a function.

        >>> import torch
        >>> pool = MemoryPool("64MiB", device="cpu")
        >>> @pool
        ... def ones() -> torch.Tensor:
        ...     return torch.ones(256)
        >>> ones().nbytes, pool.stats().allocations > 0
        (1024, True)
        """
        return decorated(self, function)

    def outside(self) -> AbstractContextManager[object]:
        """A scope in which the device's allocations go to PyTorch's own allocator.

        For memory that must not be a pool's: buffers that NCCL registers, tensors that other
        processes share. Like the pool's own scope it counts for the whole process.

        >>> import torch
        >>> pool = MemoryPool("64MiB", device="cpu")
        >>> with pool, pool.outside():
        ...     native = torch.empty(256)
        >>> pool.stats().allocations
        0
        """
        return OutsideScope(self._device.ordinal)

    # ---- for other libraries

    def rmm_resource(self) -> "CallbackMemoryResource":
        """The pool as an RMM memory resource, for cuDF and others.

        It honours the stream of each request, and keeps this object alive.

        >>> import rmm  # doctest: +SKIP
        >>> rmm.mr.set_current_device_resource(pool.rmm_resource())  # doctest: +SKIP

        Raises:
            MissingExtraError: RMM is not installed: ``pip install 'vramkit[rmm]'``.
            UnsupportedDeviceError: The pool is not on a CUDA device.
        """
        self._require_cuda("rmm_resource()")
        return _interop.rmm_resource(self._core, keeper=self)

    def cupy_allocator(self) -> "Callable[[int], cupy.cuda.MemoryPointer]":
        """The pool as an allocator for ``cupy.cuda.set_allocator``.

        It honours CuPy's current stream, and keeps this object alive.

        >>> import cupy  # doctest: +SKIP
        >>> cupy.cuda.set_allocator(pool.cupy_allocator())  # doctest: +SKIP

        Raises:
            MissingExtraError: CuPy is not installed: ``pip install 'vramkit[cupy]'``.
            UnsupportedDeviceError: The pool is not on a CUDA device.
        """
        self._require_cuda("cupy_allocator()")
        return _interop.cupy_allocator(self._core, keeper=self, ordinal=self._device.ordinal)

    def _require_cuda(self, wish: str) -> None:
        if self._device.kind != "cuda":
            raise UnsupportedDeviceError(
                f"{wish} is for CUDA pools and this one is on the CPU; make one with device='cuda'"
            )

    # ---- what it holds

    def stats(self) -> PoolStats:
        """The pool's counters now.

        Raises:
            PoolClosedError: The pool is closed.
        """
        return make_stats(self._core.stats(), self._core.size_classes())

    def memory_summary(self) -> str:
        """The counters as a table, in the manner of ``torch.cuda.memory_summary()``.

        Raises:
            PoolClosedError: The pool is closed.
        """
        stats = self.stats()
        title = f"vramkit memory pool, device {self._device.name}, "
        title += format_mib(stats.capacity_bytes)
        if self._device.kind == "cpu":
            return format_summary(stats, title)
        private, native = _cuda.held_outside_pools(self._device.ordinal)
        outside = [
            ("By CUDA graphs and torch.cuda.MemPool", private),
            ("By PyTorch's own allocator", native),
        ]
        return format_summary(stats, title, outside=outside)

    def snapshot(self) -> list[PoolBlock]:
        """All blocks, by address.

        Raises:
            PoolClosedError: The pool is closed.
        """
        return [make_block(block) for block in self._core.snapshot()]

    def reset_peak_stats(self) -> None:
        """Set the peaks to the present values."""
        self._core.reset_peaks()

    # ---- its options

    @property
    def device(self) -> "torch.device":
        """Whose tensors the pool serves."""
        import torch

        return torch.device(self._device.name)

    @property
    def capacity_bytes(self) -> int:
        """The most that the pool may hold, in bytes; :meth:`resize` changes it.

        Of a closed pool, and in a forked child, it is the last capacity that the pool had.
        """
        with contextlib.suppress(PoolClosedError, ForkedPoolError):
            self._note_capacity()
        return self._capacity_bytes

    def _note_capacity(self) -> None:
        self._capacity_bytes = self._core.stats()["capacity_bytes"]

    @property
    def page_bytes(self) -> int:
        """Size of the pool's pages in bytes."""
        return self._page_bytes

    @property
    def overflow(self) -> Literal["error", "native"]:
        """What happens to a request that does not fit."""
        return self._overflow

    # ---- its size and its end

    def trim(self) -> int:
        """Give the physical memory of wholly free pages back to the system.

        The capacity stays; pages come back when tensors need them.

        Returns:
            The bytes given back.
        """
        return self._core.trim()

    def resize(self, capacity: SupportsIndex | str | float) -> None:
        """Change the capacity.

        Args:
            capacity: As for the constructor.

        Raises:
            CapacityError: It cannot be read, or the device does not have it.
            PoolBusyError: Shrinking, too few pages are wholly free; nothing has changed.
            InvalidArgumentError: The pool stands on an upstream resource.
        """
        if self._has_upstream:
            raise InvalidArgumentError(
                "a pool with upstream= cannot be resized: its memory is one piece of the "
                "resource's; make a new pool"
            )
        held_bytes = self._core.stats()["capacity_bytes"]
        room = _capacity.room_on(self._device, held_bytes=held_bytes)
        wanted = _capacity.capacity_bytes(capacity, page_bytes=self._page_bytes, room=room)
        try:
            self._core.resize(wanted)
        except PoolOutOfMemoryError as err:
            raise CapacityError(str(err)) from err
        self._note_capacity()

    def close(self) -> None:
        """Give everything back. A closed pool stays closed; closing it again does nothing.

        What PyTorch's libraries keep for ever on a CUDA device, cuBLAS's workspaces, is dropped
        when it alone stands in the way and no CUDA graph is alive; this waits for the device.

        Raises:
            PoolBusyError: Tensors of the pool are alive, or a scope is open.
        """
        if self._closed:
            return
        scopes = self._core.open_scopes()
        if scopes:
            raise PoolBusyError(
                f"the pool has {counted(scopes, 'open scope')}, so tensors would still "
                f"be allocated from it; {self._how_to_leave(scopes)} before close()"
            )
        self._note_capacity()
        _close.close(self._core, self._device)
        self._closed = True

    def _how_to_leave(self, scopes: int) -> str:
        blocks = scopes - self._active
        ways = ["call `pool.deactivate()`"] if self._active else []
        if blocks > 0:
            ways.append("leave the `with` block" + "s" * (blocks > 1))
        return " and ".join(ways)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has succeeded."""
        return self._closed

    def __repr__(self) -> str:
        """Capacity, device and use in one line."""
        try:
            counters = self._core.stats()
        except (PoolClosedError, ForkedPoolError) as err:
            state = "closed" if isinstance(err, PoolClosedError) else "of the parent process"
            return f"<MemoryPool device={self._device.name!r} {state}>"
        capacity = format_mib(counters["capacity_bytes"])
        return (
            f"<MemoryPool device={self._device.name!r} capacity={capacity} "
            f"live={format_mib(counters['live_bytes'])} in "
            f"{counted(counters['live_blocks'], 'block')}>"
        )

    def __reduce__(self) -> NoReturn:
        """Refuse: a pool is memory of this process.

        Raises:
            ArgumentTypeError: Always.
        """
        raise ArgumentTypeError(
            "a MemoryPool cannot be copied or pickled: it is memory of this process. Make a pool "
            "in each process, and keep it out of what is sent to spawned workers"
        )
