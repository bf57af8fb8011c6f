"""The exceptions of vramkit.

Every exception is a :class:`VramkitError` and also the builtin exception that fits, so that both
``except vramkit.errors.VramkitError`` and ``except ValueError`` work. A pool that runs out of
memory inside a tensor operation raises ``torch.OutOfMemoryError``, as PyTorch's own allocators do.

>>> issubclass(CapacityError, VramkitError) and issubclass(CapacityError, ValueError)
True
"""

__all__ = [
    "ArgumentTypeError",
    "CalibrationError",
    "CapacityError",
    "DoubleFreeError",
    "EmptyStepError",
    "ForeignPointerError",
    "ForkedPoolError",
    "InvalidArgumentError",
    "LoaderClosedError",
    "MissingExtraError",
    "NativeLibraryError",
    "PoolBusyError",
    "PoolClosedError",
    "PoolOutOfMemoryError",
    "RowIndexError",
    "ScopeError",
    "SystemCallError",
    "TableFullError",
    "TableUsageError",
    "TraceError",
    "UnsupportedDeviceError",
    "UntraceableError",
    "VramkitError",
]


class VramkitError(Exception):
    """Base of all exceptions that vramkit raises on its own account."""


class InvalidArgumentError(VramkitError, ValueError):
    """A size, an option or a combination of them that can never work."""


class CapacityError(InvalidArgumentError):
    """A pool capacity that is malformed, too small, or more than the machine has."""


class EmptyStepError(InvalidArgumentError):
    """An estimated step that puts nothing on the GPU."""


class TraceError(InvalidArgumentError):
    """A trace that cannot be read, or whose events contradict each other."""


class ArgumentTypeError(VramkitError, TypeError):
    """An argument is of a type that can never work, or cannot do what was asked of it."""


class UnsupportedDeviceError(VramkitError, NotImplementedError):
    """The device has no pool in this version or on this machine."""


class UntraceableError(VramkitError, RuntimeError):
    """A step whose memory cannot be known without running it."""


class CalibrationError(VramkitError, RuntimeError):
    """A measurement of a GPU ended without a result."""


class LoaderClosedError(VramkitError, RuntimeError):
    """The data loader has been closed."""


class PoolOutOfMemoryError(VramkitError, MemoryError):
    """The pool cannot serve a request within its capacity."""


class PoolClosedError(VramkitError, RuntimeError):
    """The pool has been closed."""


class PoolBusyError(VramkitError, RuntimeError):
    """The pool still has live blocks or open scopes where none may be."""


class ScopeError(VramkitError, RuntimeError):
    """A scope was closed that nobody has opened."""


class ForkedPoolError(VramkitError, RuntimeError):
    """The pool belongs to the parent of this process."""


class ForeignPointerError(VramkitError, ValueError):
    """The address was never handed out by the pool."""


class DoubleFreeError(VramkitError, RuntimeError):
    """The address is the pool's, but no live block starts there."""


class RowIndexError(VramkitError, IndexError):
    """An id that an embedding table of fixed size does not have."""


class TableFullError(VramkitError, MemoryError):
    """An embedding table needs more rows than its budget or host memory has room for."""


class TableUsageError(VramkitError, RuntimeError):
    """An embedding table is used in a way that would train it wrongly or read another one."""


class SystemCallError(VramkitError, OSError):
    """The operating system or the driver refused a call."""


class MissingExtraError(VramkitError, ImportError):
    """A package that one of vramkit's extras installs cannot be imported."""


class NativeLibraryError(VramkitError, ImportError):
    """A native library of vramkit is missing or does not fit this Python code or this torch."""
