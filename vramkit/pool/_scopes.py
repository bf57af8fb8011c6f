"""The open scopes of one pool.

The core ends scopes by token, in any order; what is decided here is which token an ``__exit__``
ends: the latest that its own thread or task opened, else the pool's latest.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from vramkit._core import CorePool, close_scope, open_outside_scope
from vramkit.errors import ForkedPoolError

# The open tokens of this thread or asyncio task, of all pools, oldest first. One variable for all
# pools, because context variables are never collected.
_mine: contextvars.ContextVar[tuple[int, ...]] = contextvars.ContextVar(
    "vramkit_scopes", default=()
)

# The open tokens of all pools. Another thread may close what is listed in _mine.
_all_open: set[int] = set()

_INHERITED = 0  # stands for a scope in a forked child, where the parent's pools route nothing


class Scopes:
    """Opens and closes a pool's scopes; safe from any thread.

    A dict, not a lock: its single operations are atomic under the GIL, and a lock that another
    thread holds at a fork would stay locked in the child.
    """

    def __init__(self, pool: CorePool, ordinal: int) -> None:
        """Start with no scope open; ``ordinal`` is the device's as the core counts them."""
        self._pool = pool
        self._ordinal = ordinal
        self._open: dict[int, None] = {}

    def __len__(self) -> int:
        """Number of scopes open."""
        return len(self._open)

    def enter(self) -> None:
        """Open a scope; in a forked child nothing is routed.

        Raises:
            PoolClosedError: The pool is closed.
        """
        try:
            token = self._pool.open_scope(self._ordinal)
        except ForkedPoolError:
            token = _INHERITED
        else:
            self._open[token] = None
            _all_open.add(token)
        still_open = [mine for mine in _mine.get() if mine in _all_open or mine == _INHERITED]
        _mine.set((*still_open, token))

    def exit(self) -> None:
        """Close the scope that this thread or task opened last.

        Raises:
            RuntimeError: No scope is open.
        """
        mine = _mine.get()
        for token in reversed(mine):
            if token == _INHERITED or token in self._open:
                index = len(mine) - 1 - mine[::-1].index(token)
                _mine.set(mine[:index] + mine[index + 1 :])
                break
        else:
            # Opened by another thread: two threads may end such scopes at the same time.
            try:
                token, _ = self._open.popitem()
            except KeyError:
                raise RuntimeError(
                    "MemoryPool: __exit__ without __enter__: no scope is open"
                ) from None
        self._close(token)

    def close_all(self) -> None:
        """Close whatever is open: nobody is left who could."""
        for token in list(self._open):
            self._close(token)

    def _close(self, token: int) -> None:
        if token == _INHERITED:
            return
        self._open.pop(token, None)
        _all_open.discard(token)
        try:
            close_scope(token)
        except ForkedPoolError:
            # A child leaves the `with` block that its parent entered before the fork.
            return


@contextlib.contextmanager
def outside_scope(ordinal: int) -> Iterator[None]:
    """A scope in which the device's allocations go to no pool."""
    token = open_outside_scope(ordinal)
    try:
        yield
    finally:
        close_scope(token)
