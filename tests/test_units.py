import numpy as np
import pytest

from vramkit.errors import InvalidArgumentError
from vramkit.units import format_mib, parse_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GiB", 2 << 30),
        ("2GB", 2 * 10**9),
        ("512 MiB", 512 << 20),
        ("  1.5gib ", 3 << 29),
        ("0.1KB", 100),
        ("7", 7),
        ("7B", 7),
        ("3TiB", 3 << 40),
        ("1PB", 10**15),
        # Exact where a float would round: 2**53 + 1.
        ("9007199254740993", 9007199254740993),
    ],
)
def test_texts(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("size", [np.int64(4096), np.uint8(200), 4096])
def test_integers_of_any_kind(size: int) -> None:
    parsed = parse_bytes(size)
    assert parsed == size
    assert type(parsed) is int


@pytest.mark.parametrize("size", [True, 1.0, np.float32(3), None, b"2GiB", [1], np.bool_(True)])
def test_other_types_are_refused(size: object) -> None:
    with pytest.raises(TypeError, match=r"^page must be an integer number of bytes or a text"):
        parse_bytes(size, name="page")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, "0", "0.0MiB", "0.5B"])
def test_sizes_below_a_byte_are_refused(size: int | str) -> None:
    with pytest.raises(InvalidArgumentError, match="at least 1 byte"):
        parse_bytes(size)


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "1,000", "2 G iB", "1_000", "٣GiB"])
def test_unreadable_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read: write a number and a unit"):
        parse_bytes(text)


def test_ambiguous_units_name_both_meanings() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_bytes("3g", name="capacity")
    assert str(caught.value) == (
        "capacity '3g': the unit 'g' is ambiguous; write '3GiB' (2**30 bytes each) or '3GB' (10**9)"
    )


def test_unknown_units_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match="unknown unit 'ZiB'; use B, KiB"):
        parse_bytes("3ZiB")
    with pytest.raises(InvalidArgumentError, match="unknown unit 'bytes'; use B, KiB"):
        parse_bytes("3 bytes")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1 << 20, "1 MiB"),
        (5 << 30, "5,120 MiB"),
        (700_000, "0.67 MiB"),
        ((1 << 20) + (1 << 19), "1.5 MiB"),
        (-(1 << 21), "-2 MiB"),
    ],
)
def test_format(size_bytes: int, text: str) -> None:
    assert format_mib(size_bytes) == text
