"""The types of options: what Python would take for something else is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vramkit.errors import ArgumentTypeError

# By the annotation: the types, and what is said of others.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "True or False"),
    "str": ((str,), "a text"),
    "float": ((int, float), "a number"),
}


def check_types(options: Any) -> None:
    """Refuse texts for truths, numbers for texts and the like.

    Args:
        options: A dataclass; integers are left to it, as each has limits of its own.

    Raises:
        ArgumentTypeError: A value is of another type than its field.
    """
    for each in fields(options):
        value = getattr(options, each.name)
        types, words = _KINDS.get(str(each.type), ((object,), ""))
        if not isinstance(value, types) or (isinstance(value, bool) and each.type == "float"):
            raise ArgumentTypeError(
                f"{each.name} must be {words}, got {value!r} of {type(value).__name__}"
            )
