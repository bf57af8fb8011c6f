"""Byte sizes: reading what people write, writing what people read."""

import operator
import re
from fractions import Fraction
from typing import SupportsIndex

from vramkit.errors import InvalidArgumentError

__all__ = ["format_mib", "parse_bytes"]

_MIB = 1 << 20
_FACTORS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", start=1)},
}
# Python refuses to read numbers of thousands of digits, with an error of its own.
_PATTERN = re.compile(
    r"\s*(?P<number>\d{1,40}(\.\d{1,40})?)\s*(?P<unit>[a-z]*)\s*", re.IGNORECASE | re.ASCII
)


def parse_bytes(size: SupportsIndex | str, *, name: str = "size") -> int:
    """Read a positive byte size.

    Args:
        size: Bytes as any integer, or a text with a unit: ``"2GiB"`` (2**31 bytes),
            ``"2GB"`` (2 * 10**9 bytes), ``"512 MiB"``, ``"1048576"``. Case does not matter;
            fractions of a byte are dropped.
        name: What the size is, for the error's text.

    Returns:
        The size in bytes.

    Raises:
        TypeError: ``size`` is neither an integer nor a text (``bool`` is neither).
        InvalidArgumentError: The text cannot be read, or the size is below one byte.

    >>> parse_bytes("2GiB"), parse_bytes("2GB"), parse_bytes("1.5 KiB"), parse_bytes(4096)
    (2147483648, 2000000000, 1536, 4096)
    >>> parse_bytes("2G")
    Traceback (most recent call last):
        ...
    vramkit.errors.InvalidArgumentError: size '2G': the unit 'G' is ambiguous; write '2GiB' \
(2**30 bytes each) or '2GB' (10**9)
    """
    size_bytes = _parse_text(size, name) if isinstance(size, str) else _parse_integer(size, name)
    if size_bytes <= 0:
        raise InvalidArgumentError(f"{name} must be at least 1 byte, got {size!r}")
    return size_bytes


def format_mib(size_bytes: int) -> str:
    """Write a byte size for people: in MiB (2**20 bytes), small ones exactly.

    >>> format_mib(3 << 30), format_mib(1_572_864), format_mib(16_384), format_mib(500)
    ('3,072 MiB', '1.5 MiB', '16 KiB', '500 B')
    """
    if size_bytes and size_bytes % 1024 == 0 and abs(size_bytes) < _MIB:
        return f"{size_bytes // 1024:,} KiB"
    if abs(size_bytes) < _MIB // 100:
        return f"{size_bytes:,} B"
    if size_bytes % _MIB == 0:
        return f"{size_bytes // _MIB:,} MiB"
    digits = 1 if abs(size_bytes) >= _MIB else 2
    return f"{size_bytes / _MIB:,.{digits}f} MiB"


def _parse_integer(size: SupportsIndex, name: str) -> int:
    message = (
        f"{name} must be an integer number of bytes or a text such as '2GiB', "
        f"got {size!r} of type {type(size).__name__}"
    )
    if isinstance(size, bool):
        raise TypeError(message)
    try:
        return operator.index(size)
    except TypeError:
        raise TypeError(message) from None


def _parse_text(text: str, name: str) -> int:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(
            f"{name} {text!r} cannot be read: write a number and a unit, such as '2GiB', "
            "'512 MiB' or '2GB'"
        )
    number, unit = match["number"], match["unit"]
    factor = _FACTORS.get(unit.lower())
    if factor is None:
        raise InvalidArgumentError(_unknown_unit(text, number, unit, name))
    return int(Fraction(number) * factor)


def _unknown_unit(text: str, number: str, unit: str, name: str) -> str:
    letter = unit.upper()
    if letter in tuple("KMGTP"):
        power = "KMGTP".index(letter) + 1
        binary, decimal = f"{number}{letter}iB", f"{number}{letter}B"
        return (
            f"{name} {text!r}: the unit {unit!r} is ambiguous; write {binary!r} "
            f"(2**{10 * power} bytes each) or {decimal!r} (10**{3 * power})"
        )
    return f"{name} {text!r}: unknown unit {unit!r}; use B, KiB, MiB, GiB, TiB or KB, MB, GB, TB"
