"""The file of ``vramkit calibrate``: what was measured on a GPU, as JSON.

``_data/h100.json`` has the same format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vramkit.errors import InvalidArgumentError
from vramkit.estimate._target import Target

FORMAT, VERSION = "vramkit-calibration", 1
COLUMNS = ["forward", "input", "weight"]

_MOST_BYTES = 64 << 20
_COMMUNICATORS = ("first", "further", "all_to_all")


def read_calibration(path: Path) -> Target:
    """Read the GPU of a file.

    Raises:
        InvalidArgumentError: There is no such file, or it is no calibration.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidArgumentError(f"{path} is too large for a file of vramkit calibrate")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise InvalidArgumentError(f"{path} cannot be read: {err.strerror or err}") from err
    except (ValueError, RecursionError) as err:
        raise InvalidArgumentError(f"{path} is not valid JSON: {err}") from err
    return target_of(values, str(path))


def write_calibration(values: Mapping[str, Any], path: Path) -> None:
    """Write a file; it is checked first.

    Args:
        values: The content, without format and version.
        path: Where to write.

    Raises:
        InvalidArgumentError: The content is not whole.
    """
    whole = {"format": FORMAT, "version": VERSION, **values}
    target_of(whole, str(path))
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def target_of(values: Any, where: str) -> Target:
    """Make the GPU of a file's content.

    Args:
        values: The content.
        where: What messages call the file.

    Raises:
        InvalidArgumentError: It is no calibration, or a value is missing or wrong.
    """
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InvalidArgumentError(f"{where} was not written by vramkit calibrate")
    if values.get("version") != VERSION:
        raise InvalidArgumentError(
            f"{where} has version {values.get('version')!r} of the format, this vramkit reads "
            f"{VERSION}; run vramkit calibrate again"
        )
    part = _Part(values, where)
    gpu, outside, kept = part.part("gpu"), part.part("outside"), part.part("workspaces")
    return Target(
        name=part.text("name"),
        title=gpu.text("title"),
        capability=gpu.pair("capability"),
        multi_processors=gpu.integer("multi_processors"),
        threads_per_multi_processor=gpu.integer("threads_per_multi_processor"),
        l2_bytes=gpu.integer("l2_bytes"),
        total_bytes=gpu.integer("total_bytes"),
        outside_bytes=outside.integer("bytes"),
        outside_low_bytes=outside.integer("low_bytes"),
        outside_high_bytes=outside.integer("high_bytes"),
        cublas_bytes=kept.integer("cublas_bytes"),
        cublas_lt_bytes=kept.integer("cublas_lt_bytes"),
        cudnn_version=part.part("versions").integer("cudnn"),
        measured=True,
        convolutions=part.part("convolutions").part("workspaces").triples(),
        library_bytes=part.part("library_bytes").integers(),
        communicator_bytes=part.part("communicator_bytes").integers(_COMMUNICATORS),
    )


class _Part:
    """An object of the file, read with checks."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def part(self, name: str) -> _Part:
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return _Part(value, f"{self._where}, {name}")

    def integer(self, name: str) -> int:
        value = self._values.get(name)
        if type(value) is not int or value < 0:
            raise self._wrong(name, value, "an integer of at least 0")
        return value

    def text(self, name: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str) or not value:
            raise self._wrong(name, value, "a text")
        return value

    def pair(self, name: str) -> tuple[int, int]:
        first, second = self._numbers(name, 2)
        return first, second

    def triples(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for name in self._values:
            first, second, third = self._numbers(name, 3)
            found[name] = (first, second, third)
        return found

    def integers(self, whole: tuple[str, ...] = ()) -> dict[str, int]:
        """All values; where there are any, those of ``whole`` must be among them."""
        names = dict.fromkeys([*self._values, *(whole if self._values else ())])
        return {name: self.integer(name) for name in names}

    def _numbers(self, name: str, count: int) -> list[int]:
        value = self._values.get(name)
        good = isinstance(value, list) and len(value) == count
        if not good or any(type(each) is not int or each < 0 for each in value or ()):
            raise self._wrong(name, value, f"a list of {count} integers of at least 0")
        return list(value or ())

    def _wrong(self, name: str, value: object, wanted: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._where}: {name!r} must be {wanted}, got {value!r}")
