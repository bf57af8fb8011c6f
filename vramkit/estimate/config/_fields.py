"""Reads the fields of a configuration: each has its type, and a missing one is named."""

from __future__ import annotations

from typing import Any

from vramkit.errors import InvalidArgumentError

# More than any model has; keeps what a hostile file can ask for small.
_MOST = 1 << 40
MOST_LAYERS = 2000


class Fields:
    """The fields of one ``config.json``.

    Attributes:
        where: The name or the file, for errors.
        notes: What was assumed for fields that are missing.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        """Keep the fields; nothing is read yet."""
        self._values = values
        self.where = where
        self.notes: list[str] = []

    def integer(
        self, *names: str, default: int | None = None, why: str = "", most: int = _MOST
    ) -> int:
        """Read a positive integer.

        Args:
            names: The field, and other names that it has had.
            default: What a missing field means; without it, the field must be there.
            why: Where the default comes from; it is then noted.
            most: The largest that is taken.

        Raises:
            InvalidArgumentError: The field is missing or no positive integer.
        """
        found = self.optional(*names)
        if found is not None:
            if found > most:
                raise self.wrong(names[0], found, f"at most {most:,}")
            return found
        if default is None:
            raise InvalidArgumentError(
                f"{self.where}: the configuration has no {' or '.join(map(repr, names))}, without "
                "which the model's size is not known; add it"
            )
        if why:
            self.notes.append(f"{names[0]} is not in the configuration: {default:,}, {why}.")
        return default

    def optional(self, *names: str) -> int | None:
        """Read a positive integer that may be missing or ``null``."""
        for name in names:
            value = self._values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MOST:
                raise self.wrong(name, value, "a positive integer")
            return value
        return None

    def count(self, name: str, *, default: int, most: int = _MOST) -> int:
        """Read an integer that may be 0, or missing; ``most`` is the largest that is taken."""
        value = self._values.get(name)
        if value is None or value == 0:
            return default if value is None else 0
        return self.integer(name, most=most)

    def is_null(self, name: str) -> bool:
        """Tell whether a field is there and ``null``."""
        return name in self._values and self._values[name] is None

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Read a truth value."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def text(self, *names: str, default: str | None = None) -> str:
        """Read a text."""
        for name in names:
            value = self._values.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise self.wrong(name, value, "a text")
            return value
        if default is None:
            raise InvalidArgumentError(
                f"{self.where}: the configuration has no {names[0]!r}; is this the config.json of "
                "a Hugging Face model?"
            )
        return default

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Read a list of integers, which may be missing."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or any(type(each) is not int for each in value):
            raise self.wrong(name, value, "a list of integers")
        return tuple(value)

    def texts(self, name: str, *, count: int) -> tuple[str, ...] | None:
        """Read a list of texts, one a layer, which may be missing."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or any(not isinstance(each, str) for each in value):
            raise self.wrong(name, value, "a list of texts")
        if len(value) != count:
            raise InvalidArgumentError(
                f"{self.where}: {name!r} has {len(value):,} entries for {count:,} layers"
            )
        return tuple(value)

    def mapping(self, name: str) -> dict[str, Any] | None:
        """Read an object, which may be missing."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return value

    def wrong(self, name: str, value: object, wanted: str) -> InvalidArgumentError:
        """The error for a field that cannot be used."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return InvalidArgumentError(f"{self.where}: {name!r} must be {wanted}, got {shown}")
