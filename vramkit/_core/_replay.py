"""Replays allocation events through a pool of the core."""

import ctypes
import weakref
from typing import TYPE_CHECKING

from vramkit._core._library import call, invoke, library, raise_status
from vramkit._core._pool import CorePool
from vramkit._core._structs import Status
from vramkit.errors import InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CoreReplay:
    """Runs events on a pool and remembers which block has which id.

    Args:
        pool: Where the events run; it must outlive the replay.
        block_count: Ids run from 0 to ``block_count - 1``.
    """

    def __init__(self, pool: CorePool, block_count: int) -> None:
        """Create the replay's table of blocks."""
        handle = ctypes.c_void_p()
        call("vramkit_replay_create", pool.handle, block_count, ctypes.byref(handle))
        self._handle = handle.value
        self._pool = pool
        self.destroy = weakref.finalize(self, library().vramkit_replay_destroy, self._handle)

    def run(
        self,
        op: "NDArray[np.uint8]",
        block_id: "NDArray[np.int64]",
        size_bytes: "NDArray[np.int64]",
        stream: "NDArray[np.int32]",
    ) -> tuple[int, Status]:
        """Run events, one array entry each.

        Returns:
            The number of events completed, and OK or OUT_OF_MEMORY (then the pool is as it was
            before the failing event, and ``last_error()`` explains).

        Raises:
            VramkitError: An event is not valid.
        """
        columns = [
            _address(op, "uint8", len(op)),
            _address(block_id, "int64", len(op)),
            _address(size_bytes, "int64", len(op)),
            _address(stream, "int32", len(op)),
        ]
        done = ctypes.c_uint64()
        status = invoke("vramkit_replay_run", self._handle, *columns, len(op), ctypes.byref(done))
        if status not in (Status.OK, Status.OUT_OF_MEMORY):
            raise_status(Status(status))
        return done.value, Status(status)


def last_error() -> str:
    """The core's text of this thread's last failing call."""
    text: bytes | None = library().vramkit_last_error()
    return (text or b"").decode(errors="replace")


def _address(column: "NDArray[np.generic]", dtype: str, length: int) -> int:
    if column.dtype.name != dtype or column.shape != (length,) or not column.flags.c_contiguous:
        raise InvalidArgumentError(
            f"a replay column must be a contiguous {dtype} array of shape ({length},), got "
            f"{column.dtype.name} {column.shape}"
        )
    return int(column.ctypes.data)
