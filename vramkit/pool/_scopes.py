"""The scope in which a device's allocations go to no pool."""

import contextlib
from types import TracebackType
from typing import Self

from vramkit._core import natively_entered, new_route


@natively_entered
class OutsideScope(contextlib.ContextDecorator, contextlib.AbstractContextManager["OutsideScope"]):
    """Routes a device's allocations to PyTorch's own allocator; may be entered again and again."""

    def __init__(self, ordinal: int) -> None:
        """Make the scope, not yet open, of the device of that number as the core counts them."""
        self._route, _ = new_route(ordinal)

    def __enter__(self) -> Self:
        """Open the scope, for the whole process."""
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the scope that this thread or task opened last."""
        raise NotImplementedError
