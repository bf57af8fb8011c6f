"""The memory pool as a context manager."""

import functools
import inspect
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Literal,
    NoReturn,
    ParamSpec,
    Self,
    SupportsIndex,
    TypeVar,
    cast,
)

from vramkit._core import CorePool
from vramkit.errors import (
    ForkedPoolError,
    InvalidArgumentError,
    PoolBusyError,
    PoolClosedError,
)
from vramkit.pool import _adapter, _capacity, _stacks
from vramkit.pool._device import require_cpu
from vramkit.pool._report import (
    PoolBlock,
    PoolStats,
    format_summary,
    make_block,
    make_stats,
)
from vramkit.pool._scopes import Scopes
from vramkit.units import format_mib

if TYPE_CHECKING:
    import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


class MemoryPool:
    """A memory budget of its own for PyTorch tensors.

    Inside ``with pool:`` every tensor of the pool's device that the process allocates, in any
    thread, comes from the pool. Scopes nest; when several pools' scopes are open the latest
    wins; they may be left in any order and from any thread. Tensors may outlive the scope and
    the pool object: their memory stays valid, and what the pool holds is given back with its
    last tensor. A pool is also a decorator: each call of the function opens a scope.

    When the pool is full, allocating raises ``torch.OutOfMemoryError`` with an explanation.

    Args:
        capacity: The most the pool may hold: bytes, a text such as ``"2GiB"``, or a float in
            (0, 1]: that part of the memory free now. Rounded down to whole pages.
        device: Whose tensors. ``None`` is the current accelerator, or the CPU where there is
            none. This version has pools for the CPU only.
        overflow: ``"error"``, or ``"native"``: what does not fit comes from PyTorch's own
            allocator, is counted, and is warned about once.
        record_stacks: Note the Python stack of each allocation, for the explanation and for
            :meth:`snapshot`. Costs some microseconds an allocation.
        page_bytes: Size of the pages that are stitched together when no hole is large enough:
            a power of two of at least 64 KiB.

    Raises:
        TypeError: An argument is of the wrong type.
        CapacityError: The capacity cannot be read, or the machine does not have it.
        InvalidArgumentError: Another argument can never work.
        UnsupportedDeviceError: There is no pool for the device.
        NativeLibraryError: A native library is missing and cannot be built.

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
        device: "torch.device | str | None" = None,
        overflow: Literal["error", "native"] = "error",
        record_stacks: bool = False,
        page_bytes: SupportsIndex | str = _capacity.DEFAULT_PAGE_BYTES,
    ) -> None:
        """Make the pool; physical memory is taken as tensors need it."""
        if overflow not in ("error", "native"):
            raise InvalidArgumentError(f"overflow must be 'error' or 'native', got {overflow!r}")
        page = _capacity.checked_page_bytes(page_bytes)
        require_cpu(device)
        wanted = _capacity.capacity_bytes(capacity, page_bytes=page)
        _adapter.install_cpu()
        self._core = CorePool.create(
            backend="host",
            label="cpu",
            capacity_bytes=wanted,
            page_bytes=page,
            overflow_native=overflow == "native",
        )
        self._page_bytes = page
        self._scopes = Scopes(self._core)
        self._closed = False
        self._finalizer = weakref.finalize(self, _let_go, self._core, self._scopes)
        # At process exit other threads may still use the memory; the system takes it back.
        self._finalizer.atexit = False
        if record_stacks:
            _stacks.record_stacks_of(self._core)

    # ---- scopes

    def __enter__(self) -> Self:
        """Route the device's allocations of the whole process to this pool.

        In a forked child the parent's pools route nothing: there PyTorch's allocator serves.

        Raises:
            PoolClosedError: The pool is closed.
        """
        self._scopes.enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the scope that this thread or task opened last."""
        self._scopes.exit()

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Wrap a function or a coroutine function: each call runs in a scope of this pool.

        Raises:
            TypeError: A generator, whose scope would stay open between its values.

        >>> import torch
        >>> pool = MemoryPool("64MiB", device="cpu")
        >>> @pool
        ... def ones() -> torch.Tensor:
        ...     return torch.ones(256)
        >>> ones().nbytes, pool.stats().allocations > 0
        (1024, True)
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__qualname__} is a generator: between its values the scope would stay "
                "open for the whole process; use `with pool:` inside it, around the work"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def scoped_coroutine(*args: _P.args, **kwargs: _P.kwargs) -> object:
                with self:
                    return await function(*args, **kwargs)

            return cast("Callable[_P, _R]", scoped_coroutine)

        @functools.wraps(function)
        def scoped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self:
                return function(*args, **kwargs)

        return scoped

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
        title = f"vramkit memory pool, device cpu, {format_mib(stats.capacity_bytes)}"
        return format_summary(stats, title)

    def snapshot(self) -> list[PoolBlock]:
        """All blocks, by address.

        Raises:
            PoolClosedError: The pool is closed.
        """
        return [make_block(block) for block in self._core.snapshot()]

    def reset_peak_stats(self) -> None:
        """Set the peaks to the present values."""
        self._core.reset_peaks()

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
            CapacityError: It cannot be read, or the machine does not have it.
            PoolBusyError: Shrinking, too few pages are wholly free; nothing has changed.
        """
        self._core.resize(_capacity.capacity_bytes(capacity, page_bytes=self._page_bytes))

    def close(self) -> None:
        """Give everything back. A closed pool stays closed; closing it again does nothing.

        Raises:
            PoolBusyError: Tensors of the pool are alive, or a scope is open.
        """
        if self._closed:
            return
        if len(self._scopes):
            raise PoolBusyError(
                f"the pool has {len(self._scopes)} open scope(s), so tensors would still be "
                "allocated from it; leave the `with` block before close()"
            )
        self._core.close()
        self._closed = True
        self._finalizer.detach()

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
            return f"<MemoryPool device='cpu' {state}>"
        return (
            f"<MemoryPool device='cpu' capacity={format_mib(counters['capacity_bytes'])} "
            f"live={format_mib(counters['live_bytes'])} in {counters['live_blocks']:,} blocks>"
        )

    def __reduce__(self) -> NoReturn:
        """Refuse: a pool is memory of this process.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "a MemoryPool cannot be copied or pickled: it is memory of this process. Make a pool "
            "in each process, and keep it out of what is sent to spawned workers"
        )


def _let_go(core: CorePool, scopes: Scopes) -> None:
    """The pool object is gone: its memory goes with the last tensor in it."""
    try:
        scopes.close_all()
        core.release()
    except (PoolClosedError, ForkedPoolError):
        return
