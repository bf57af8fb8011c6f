"""Reads one-dimensional ``.npy`` arrays of integers and texts, and nothing else.

NumPy's own reader believes the header: it asks for the memory that it claims, and reads a header of
4 GiB before it judges it. Here an array is checked against limits before memory is taken for it.
"""

import ast
import re
import struct
import warnings
from typing import IO

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY"
# Format of the length of the header, by the version of the format.
_LENGTHS = {(1, 0): "<H", (2, 0): "<I"}
# NumPy pads the header of such an array to 128 bytes, in old versions to 80.
_MAX_HEADER_BYTES = 1024
_DESCRIPTION = re.compile(r"[<>|=]?([iu][1248]|U(?P<characters>[1-9][0-9]{0,8}))", re.ASCII)
_CHUNK_BYTES = 1 << 20


class NpyError(ValueError):
    """The bytes are no array of this kind, or one that is too long."""


def read_npy(
    file: IO[bytes], *, size_bytes: int, limit: int, characters: int
) -> NDArray[np.generic]:
    """Read an array.

    Args:
        file: Where to read.
        size_bytes: Bytes of the whole file.
        limit: Most entries to admit.
        characters: Most characters of a text to admit.

    Raises:
        NpyError: It is no array of integers or texts, or exceeds a limit.
    """
    header, header_bytes = _read_header(file)
    dtype, count = _judge(header, limit, characters)
    if size_bytes != header_bytes + count * dtype.itemsize:
        raise NpyError(
            f"it has {size_bytes:,} bytes, where its header promises {count:,} entries of "
            f"{dtype.itemsize} bytes"
        )
    return np.frombuffer(_read(file, count * dtype.itemsize), dtype=dtype)


def _read_header(file: IO[bytes]) -> tuple[object, int]:
    start = _read(file, len(_MAGIC) + 2)
    if not start.startswith(_MAGIC):
        raise NpyError("it is no .npy file")
    version = (start[-2], start[-1])
    if version not in _LENGTHS:
        raise NpyError(f"its format has the unknown version {version[0]}.{version[1]}")
    width = _LENGTHS[version]
    (length,) = struct.unpack(width, _read(file, struct.calcsize(width)))
    if length > _MAX_HEADER_BYTES:
        raise NpyError(f"its header has {length:,} bytes, at most {_MAX_HEADER_BYTES:,} are read")
    text = _read(file, length).decode("latin-1").strip()
    return _literal(text), len(start) + struct.calcsize(width) + length


def _literal(text: str) -> object:
    try:
        with warnings.catch_warnings():
            # Python warns about odd literals while it compiles them.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as err:
        raise NpyError(f"its header cannot be read ({type(err).__name__})") from err


def _judge(header: object, limit: int, characters: int) -> tuple[np.dtype[np.generic], int]:
    if type(header) is not dict or set(map(type, header)) != {str}:
        raise NpyError("its header is no dict of names")
    description, shape = header.get("descr"), header.get("shape")
    kind = _DESCRIPTION.fullmatch(description) if type(description) is str else None
    if kind is None or type(shape) is not tuple or list(map(type, shape)) != [int]:
        raise NpyError(
            "it must hold integers or texts in one dimension, it holds "
            f"{description!r} of shape {shape!r}"
        )
    count = shape[0]
    if not 0 <= count <= limit:
        raise NpyError(f"its header claims {count:,} entries, at most {limit:,} are admitted")
    if kind["characters"] and int(kind["characters"]) > characters:
        raise NpyError(f"its texts have more than the {characters:,} characters admitted")
    return np.dtype(kind[0]), count


def _read(file: IO[bytes], count: int) -> bytearray:
    content = bytearray()
    while len(content) < count:
        part = file.read(min(count - len(content), _CHUNK_BYTES))
        if not part:
            raise NpyError(f"it ends {count - len(content):,} bytes too early")
        content += part
    return content
