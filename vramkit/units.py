"""Byte sizes and counts: reading what people write, writing what people read.

``csrc/base/bytes.cpp`` writes sizes and counts by the same rules; ``tests/test_units.py`` compares
the two.
"""

import operator
import re
from fractions import Fraction
from typing import SupportsIndex

from vramkit.errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["advised_size", "counted", "format_apart", "format_mib", "parse_bytes"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_LETTERS = "kmgtpe"
_FACTORS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate(_LETTERS, start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate(_LETTERS, start=1)},
}
_PATTERN = re.compile(
    r"\s*(?P<number>-?\d+(?P<fraction>\.\d+)?)\s*(?P<unit>[a-z]*)\s*", re.IGNORECASE | re.ASCII
)
# Far more than any size needs, and few enough for Python's conversion to an integer.
_LONGEST_TEXT = 100


def parse_bytes(size: SupportsIndex | str, *, name: str = "size", also: str = "") -> int:
    """Read a positive byte size.

    Args:
        size: Bytes as any integer, or a text with a unit: ``"2GiB"`` (2**31 bytes),
            ``"2GB"`` (2 * 10**9 bytes), ``"512 MiB"``, ``"1048576"``. Case does not matter;
            fractions of a byte are dropped.
        name: What the size is, for the error's text.
        also: What else the caller reads, for the error's text, such as ``"a float"``.

    Returns:
        The size in bytes.

    Raises:
        ArgumentTypeError: ``size`` is neither an integer nor a text (``bool`` is neither).
        InvalidArgumentError: The text cannot be read, or the size is below one byte.

    >>> parse_bytes("2GiB"), parse_bytes("2GB"), parse_bytes("1.5 KiB"), parse_bytes(4096)
    (2147483648, 2000000000, 1536, 4096)
    >>> parse_bytes("2G")
    Traceback (most recent call last):
        ...
    vramkit.errors.InvalidArgumentError: size '2G': the unit 'G' is ambiguous; write '2GiB' \
(2**30 bytes each) or '2GB' (10**9)
    """
    if isinstance(size, str):
        size_bytes = _parse_text(size, name, also)
    else:
        size_bytes = _parse_integer(size, name)
    if size_bytes <= 0:
        raise InvalidArgumentError(f"{name} must be at least 1 byte, got {size!r}")
    return size_bytes


def format_mib(size_bytes: int) -> str:
    """Write a byte size for people, in the unit that fits it, rounded to a tenth of that unit.

    >>> format_mib(500), format_mib(4096), format_mib(25_276_550_349), format_mib(-(3 << 20))
    ('500 B', '4.0 KiB', '23.5 GiB', '-3.0 MiB')
    """
    if size_bytes < 0:
        return f"-{format_mib(-size_bytes)}"
    power = _power_of(size_bytes)
    if power == 0:
        return f"{size_bytes} B"
    tenths = _tenths(size_bytes, power)
    if tenths == 10 * 1024 and power + 1 < len(_UNITS):
        tenths, power = 10, power + 1
    return f"{tenths // 10}.{tenths % 10} {_UNITS[power]}"


def format_apart(first_bytes: int, second_bytes: int) -> tuple[str, str]:
    """Write two sizes of one message, with their bytes where they would look the same.

    >>> format_apart(3 << 20, 1 << 20)
    ('3.0 MiB', '1.0 MiB')
    >>> format_apart((1 << 20) + 1, 1 << 20)
    ('1.0 MiB (1,048,577 bytes)', '1.0 MiB (1,048,576 bytes)')
    """
    first, second = format_mib(first_bytes), format_mib(second_bytes)
    if first != second or first_bytes == second_bytes:
        return first, second
    return f"{first} ({first_bytes:,} bytes)", f"{second} ({second_bytes:,} bytes)"


def advised_size(size_bytes: int, *, at_most: bool = False) -> str:
    """Write a size that a message advises, as :func:`parse_bytes` reads it.

    It is exact, or off by less than a thousandth to the side on which it is enough.

    Args:
        size_bytes: Positive.
        at_most: Round down, not up: more would not do.

    >>> advised_size(3 << 30), advised_size((2 << 20) + 1), advised_size(1536 << 20)
    ('3GiB', '2049KiB', '1536MiB')
    >>> advised_size((2 << 20) + 1, at_most=True)
    '2MiB'
    """
    unit = max(_power_of(size_bytes) - 1, 0)
    grain = 1 << (10 * unit)
    count = size_bytes // grain if at_most else -(-size_bytes // grain)
    while count % 1024 == 0 and unit + 1 < len(_UNITS):
        count, unit = count // 1024, unit + 1
    return f"{count}{_UNITS[unit]}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Write a number of things.

    Args:
        count: How many.
        noun: What one of them is called.
        plural: What several are called; ``noun`` and an "s" by default.

    >>> counted(1, "block"), counted(1200, "block"), counted(0, "entry", "entries")
    ('1 block', '1,200 blocks', '0 entries')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def _power_of(size_bytes: int) -> int:
    """The largest unit that is not larger than the size."""
    return min(max(size_bytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)


def _tenths(size_bytes: int, power: int) -> int:
    unit_bytes = 1 << (10 * power)
    return (10 * size_bytes + unit_bytes // 2) // unit_bytes


def _parse_integer(size: SupportsIndex, name: str) -> int:
    message = (
        f"{name} must be an integer number of bytes or a text such as '2GiB', "
        f"got {size!r} of type {type(size).__name__}"
    )
    if isinstance(size, bool):
        raise ArgumentTypeError(message)
    try:
        return operator.index(size)
    except TypeError:
        raise ArgumentTypeError(message) from None


def _parse_text(text: str, name: str, also: str) -> int:
    advice = "write a number and a unit, such as '2GiB', '512 MiB' or '2GB'"
    advice += f", or {also}" if also else ""
    if len(text) > _LONGEST_TEXT:
        raise InvalidArgumentError(
            f"{name}: a text of {len(text):,} characters cannot be read, which begins with "
            f"{text[:20]!r}; {advice}"
        )
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(f"{name} {text!r} cannot be read; {advice}")
    number, unit = match["number"], match["unit"]
    if match["fraction"] and not unit:
        raise InvalidArgumentError(f"{name} {text!r} has a fraction and no unit; {advice}")
    # An ambiguous unit counts as its decimal one: what is nothing even so is not advised.
    factor = _FACTORS.get(unit.lower(), _FACTORS.get(f"{unit.lower()}b"))
    size_bytes = int(Fraction(number) * factor) if factor else 1
    if size_bytes > 0 and unit.lower() not in _FACTORS:
        raise InvalidArgumentError(_unknown_unit(text, number, unit, name))
    return size_bytes


def _unknown_unit(text: str, number: str, unit: str, name: str) -> str:
    if unit.lower() in tuple(_LETTERS):
        letter = unit.upper()
        power = _LETTERS.index(unit.lower()) + 1
        binary, decimal = f"{number}{letter}iB", f"{number}{letter}B"
        return (
            f"{name} {text!r}: the unit {unit!r} is ambiguous; write {binary!r} "
            f"(2**{10 * power} bytes each) or {decimal!r} (10**{3 * power})"
        )
    return f"{name} {text!r}: unknown unit {unit!r}; use B, KiB, MiB, GiB, TiB or KB, MB, GB, TB"
