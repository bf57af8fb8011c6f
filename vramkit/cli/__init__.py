"""The ``vramkit`` command."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from vramkit import __version__
from vramkit.cli._simulate import ROUNDS
from vramkit.errors import VramkitError

__all__ = ["main"]

# Each is a module vramkit.cli._<name> with `add_arguments(parser)` and `run(arguments) -> status`,
# light to import: what a command needs is imported when it runs. A command that hands over to the
# user's program returns a function in place of the status: what that raises is not vramkit's.
_COMMANDS = {
    "demo": "train a small classifier inside a pool and draw its memory",
    "run": "run an unmodified script or module inside a pool",
    "simulate": "replay a recorded allocation trace through the pool",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``vramkit`` command.

    Args:
        arguments: The command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit status: 0 for success, 2 for bad input; commands say what others mean.
    """
    parser = _parser()
    parsed = parser.parse_args(_unglue(sys.argv[1:] if arguments is None else arguments))
    command = importlib.import_module(f"vramkit.cli._{parsed.command}")
    try:
        outcome = command.run(parsed)
    except VramkitError as err:
        print(f"vramkit {parsed.command}: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return int(outcome() if callable(outcome) else outcome)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vramkit", description="More out of the memory that you have, for PyTorch users."
    )
    parser.add_argument("--version", action="version", version=f"vramkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        module = importlib.import_module(f"vramkit.cli._{name}")
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
    return parser


def _unglue(arguments: Sequence[str]) -> list[str]:
    """Let ``--repeat-step TRACE`` leave the trace alone: only a number belongs to the option."""
    if list(arguments[:1]) != ["simulate"]:
        return list(arguments)
    following = [*arguments, ""][1:]
    return [
        f"{argument}={ROUNDS}" if argument == "--repeat-step" and not after.isdigit() else argument
        for argument, after in zip(arguments, following, strict=True)
    ]
