import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vramkit.errors import InvalidArgumentError
from vramkit.units import advised_size, counted, format_apart, format_mib, parse_bytes

ROOT = Path(__file__).resolve().parents[1]
KIB = 1024


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
        ("3EiB", 3 << 60),
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


@pytest.mark.parametrize(
    "text", ["", "GiB", "50%", "1e9", "1,000", "2 G iB", "1_000", "٣GiB", "--1"]
)
def test_unreadable_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read; write a number and a unit"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["-1GiB", "-5", "-0.5MiB", "-3g", "0g", "0.0001K"])
def test_negative_and_empty_texts_are_no_puzzle(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"size must be at least 1 byte, got '{text}'"):
        parse_bytes(text)


def test_a_fraction_of_nothing_named_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_bytes("1.01", name="capacity", also="a multiple of the peak such as '1.01x'")
    assert str(caught.value) == (
        "capacity '1.01' has a fraction and no unit; write a number and a unit, such as '2GiB', "
        "'512 MiB' or '2GB', or a multiple of the peak such as '1.01x'"
    )


def test_a_text_that_is_too_long_is_not_repeated() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_bytes("9" * 5000 + "GiB")
    assert "a text of 5,003 characters cannot be read, which begins with '9" in str(caught.value)
    assert len(str(caught.value)) < 200


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
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (4096, "4.0 KiB"),
        (1023 * KIB + 972, "1023.9 KiB"),
        (1023 * KIB + 973, "1.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 20) + (1 << 19), "1.5 MiB"),
        (int(24_105.6 * (1 << 20)), "23.5 GiB"),
        ((1 << 60) - 1, "1.0 EiB"),
        ((1 << 64) - 1, "16.0 EiB"),
        (1 << 72, "4096.0 EiB"),
        (-1, "-1 B"),
        (-(1 << 21), "-2.0 MiB"),
    ],
)
def test_format(size_bytes: int, text: str) -> None:
    assert format_mib(size_bytes) == text


def sizes() -> list[int]:
    """Sizes below 2**64: around every boundary of units and of their tenths, and random ones."""
    generator = random.Random(0)
    found = set(range(3000)) | {(1 << 64) - 1}
    for power in range(1, 64):
        for quarter in (4, 5, 6, 7):
            near = (quarter << power) // 4
            found.update(near + step for step in range(-3, 4))
    for unit in (KIB**power for power in range(1, 7)):
        # A tenth and half of one more: where rounding goes the other way.
        for twentieths in (20, 21, 22, 199, 20_459, 20_477, 20_478, 20_479, 20_480, 20_481):
            near = unit * twentieths // 20
            found.update(near + step for step in range(-2, 3))
    found.update(generator.getrandbits(generator.randrange(1, 65)) for _ in range(20_000))
    return sorted(size for size in found if 0 <= size < 1 << 64)


def test_what_is_written_is_read_back() -> None:
    for size_bytes in filter(None, sizes()):
        assert abs(parse_bytes(format_mib(size_bytes)) - size_bytes) <= size_bytes / 20


def test_advised_sizes_are_enough_exact_and_read_back() -> None:
    for size_bytes in filter(None, sizes()):
        least = parse_bytes(advised_size(size_bytes))
        assert size_bytes <= least <= size_bytes * 1025 / 1024
        most = parse_bytes(advised_size(size_bytes, at_most=True))
        assert size_bytes * 1023 / 1024 <= most <= size_bytes
    for mebibytes in (1, 3, 5788, 24_106, (1 << 20) - 1):
        assert parse_bytes(advised_size(mebibytes << 20)) == mebibytes << 20


def test_sizes_that_look_the_same_show_their_bytes() -> None:
    assert format_apart(8 << 30, 8 << 30) == ("8.0 GiB", "8.0 GiB")
    assert format_apart(8 << 30, 9 << 30) == ("8.0 GiB", "9.0 GiB")
    assert format_apart((8 << 30) + 1, 8 << 30) == (
        "8.0 GiB (8,589,934,593 bytes)",
        "8.0 GiB (8,589,934,592 bytes)",
    )


def test_counted() -> None:
    assert [counted(count, "block") for count in (0, 1, 2, 1000)] == [
        "0 blocks",
        "1 block",
        "2 blocks",
        "1,000 blocks",
    ]
    assert counted(2, "entry", "entries") == "2 entries"
    assert counted(1, "entry", "entries") == "1 entry"


PROGRAM = r"""
#include <iostream>
#include "base/bytes.h"
int main() {
  for (uint64_t size = 0, other = 0; std::cin >> size >> other;) {
    std::cout << vramkit::mib(size) << '\t' << vramkit::mib_apart(size, other) << '\t'
              << vramkit::advised_size(size) << '\t' << vramkit::counted(size, "block") << '\n';
  }
}
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that writes sizes by csrc/base/bytes.cpp."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("native")
    source, program = folder / "sizes.cpp", folder / "sizes"
    source.write_text(PROGRAM)
    bytes_cpp = ROOT / "csrc" / "base" / "bytes.cpp"
    command = [compiler, "-std=c++20", f"-I{ROOT / 'csrc'}", source, bytes_cpp, "-o", program]
    subprocess.run(command, check=True)
    return program


def test_the_core_writes_the_same(native: Path) -> None:
    pairs = [(size, other) for size in filter(None, sizes()) for other in (size - 1, size)]
    text = "\n".join(f"{size} {other}" for size, other in pairs)
    done = subprocess.run([native], input=text, capture_output=True, text=True, check=True)
    written = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(written) == len(pairs) > 40_000
    for (size, other), found in zip(pairs, written, strict=True):
        assert found == [
            format_mib(size),
            format_apart(size, other)[0],
            advised_size(size),
            counted(size, "block"),
        ]
