"""The command line: a parser whose errors are exceptions, and integers within limits."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from vramkit.cli._output import write
from vramkit.cli._status import UsageError

_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_NEGATIVE = re.compile(r"-\.?[0-9]")


class Parser(argparse.ArgumentParser):
    """Raises :class:`UsageError` with its own usage, and writes the help by :func:`write`."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(message, usage=self.format_usage().rstrip(), prog=self.prog)

    def _print_message(self, message: str, file: object = None) -> None:
        del file  # --help and --version, both on standard output
        write(message.rstrip("\n"))


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """A reader of integers for an option.

    Args:
        least: The smallest that it takes.
        most: The largest, if there is one.
    """
    limits = f"at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no integer; give one {limits}")
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {limits}, got {value}")
        return value

    return read


def join_values(arguments: Sequence[str], *, defaults: dict[str, str]) -> list[str]:
    """Join options to their values where argparse would take a wrong one, or none.

    It takes ``-1GiB`` for an option, and the trace in ``--repeat-step TRACE`` for the number.

    Args:
        arguments: The command line; what follows ``--`` stays as it is.
        defaults: For options whose value, an integer, may be left out: the value then.
    """
    joined: list[str] = []
    left = list(arguments)
    while left and left[0] != "--":
        argument = left.pop(0)
        after = left[0] if left else ""
        is_option = argument.startswith("--") and "=" not in argument
        if is_option and _NEGATIVE.match(after):
            argument = f"{argument}={left.pop(0)}"
        elif argument in defaults and not _INTEGER.fullmatch(after):
            argument = f"{argument}={defaults[argument]}"
        joined.append(argument)
    return joined + left
