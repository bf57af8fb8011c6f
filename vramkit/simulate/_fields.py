"""Takes fields from what a pickle held, after a look at their types.

Nothing is converted, compared or printed before its type is known: a list can contain itself, so
that printing it never ends.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from vramkit.errors import TraceError

_T = TypeVar("_T")


def field(container: dict[str, Any], name: str, kind: type[_T], where: str) -> _T:
    """A value of exactly that type.

    Raises:
        TraceError: There is none.
    """
    value = container.get(name)
    if type(value) is not kind:
        raise TraceError(
            f"{where} has no {kind.__name__} {name!r}; the file is damaged or of an unknown version"
        )
    return value


def unsigned(container: dict[str, Any], name: str, where: str) -> int:
    """An address or the handle of a stream: 64 bits, taken without sign.

    Raises:
        TraceError: There is none.
    """
    value = field(container, name, int, where)
    if not -(1 << 63) <= value < 1 << 64:
        shown = f"{value:#x}" if value.bit_length() <= 128 else f"of {value.bit_length()} bits"
        raise TraceError(f"{where}: {name} {shown} does not fit in 64 bits; the file is damaged")
    return value % (1 << 64)


def size(container: dict[str, Any], name: str, where: str) -> int:
    """A number of bytes.

    Raises:
        TraceError: There is none, or it is no possible one.
    """
    value = field(container, name, int, where)
    if not 0 <= value < 1 << 63:
        shown = f"{value:,}" if value.bit_length() <= 128 else f"of {value.bit_length()} bits"
        raise TraceError(
            f"{where}: {name} {shown} is no possible number of bytes; the file is damaged"
        )
    return value


def is_private(container: dict[str, Any], name: str, where: str) -> bool:
    """Whether it names a private pool: other than (0, 0), which those of old versions belong to.

    Raises:
        TraceError: The pool's id is no pair of integers.
    """
    pool = container.get(name, (0, 0))
    if pool is None:
        return False
    if type(pool) is not tuple or list(map(type, pool)) != [int, int]:
        raise TraceError(f"{where}: {name} is no pair of integers; the file is damaged")
    return pool != (0, 0)


def check_unshared(lists: Sequence[list[Any]], where: str) -> None:
    """Refuse a list that comes up more than once, so that the work is bounded by the file's size.

    Raises:
        TraceError: One does; nothing that PyTorch writes does that.
    """
    filled = [id(one) for one in lists if one]
    if len(set(filled)) != len(filled):
        raise TraceError(f"{where} are one and the same list, several times; the file is damaged")
