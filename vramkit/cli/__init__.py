"""The ``vramkit`` command."""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType

from vramkit import __version__
from vramkit.cli._arguments import Parser, join_values
from vramkit.cli._output import flush_stderr, note, write_json
from vramkit.cli._run import split
from vramkit.cli._simulate import ROUNDS
from vramkit.cli._status import CommandError, OutputError, Status, UsageError
from vramkit.errors import VramkitError

__all__ = ["main"]

# Each is a module vramkit.cli._<name> (underscores for dashes) with `add_arguments(parser)` and
# `run(arguments) -> status`, light to import: what a command needs is imported when it runs. A
# command that hands over to the user's program returns a function in place of the status: what
# that raises is not vramkit's.
_COMMANDS = {
    "calculator": "serve a local page that estimates the memory of large models",
    "calibrate": "measure a GPU for estimates, and write a file that --target reads",
    "demo": "train a small classifier inside a pool and draw its memory",
    "estimate": "estimate the GPU memory of a step or of a large model, without a GPU",
    "run": "run an unmodified script or module inside a pool",
    "simulate": "replay a recorded allocation trace through the pool",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``vramkit`` command.

    Args:
        arguments: The command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit status, one of :class:`vramkit.cli._status.Status`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        outcome = _answer(given)
    except OutputError as err:
        if err.status != Status.CLOSED_PIPE:
            note(f"vramkit: {err}; free space there, or write elsewhere")
        return int(err.status)
    finally:
        flush_stderr()
    return outcome() if callable(outcome) else int(outcome)


def _answer(given: list[str]) -> Status | Callable[[], int]:
    """Run the command; whatever ends it is told to people, and under ``--json`` to programs.

    Returns:
        The status, or the user's program, which is still to be run.
    """
    prog = "vramkit"
    try:
        parser, commands = _parsers(given)
        program: list[str] = []
        if _has_program(given):
            own, program = split(given[1:])
            given = [given[0], *own]
        words = join_values(given, defaults={"--repeat-step": str(ROUNDS)})
        parsed, unknown = parser.parse_known_args(words)
        parsed.program = program
        prog = commands[parsed.command].prog
        if unknown:
            commands[parsed.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        command = _module_of(parsed.command)
        outcome = command.run(parsed)
        return outcome if callable(outcome) else Status(outcome)
    except SystemExit:  # of --help and --version
        return Status.OK
    except OutputError:
        raise
    except (Exception, KeyboardInterrupt) as err:  # noqa: BLE001 - nothing may end with status 1
        failure = _failure_of(err)
        _tell(failure, prog)
    if "--json" in given[: given.index("--") if "--" in given else None]:
        error = {"status": failure.status, "type": failure.kind, "message": str(failure)}
        write_json({"error": error})
    return failure.status


def _module_of(command: str) -> ModuleType:
    return importlib.import_module(f"vramkit.cli._{command.replace('-', '_')}")


def _has_program(given: list[str]) -> bool:
    """Tell whether some words belong to the user's program."""
    return given[:1] == ["run"]


def _failure_of(err: BaseException) -> CommandError:
    kind = type(err).__name__
    if isinstance(err, CommandError):
        return err
    if isinstance(err, VramkitError):
        return CommandError(str(err), status=Status.BAD_INPUT, kind=kind)
    if isinstance(err, KeyboardInterrupt):
        return CommandError("interrupted", status=Status.INTERRUPTED, kind=kind)
    if isinstance(err, MemoryError):
        text = f"the machine has no memory left for this ({str(err) or 'no details'})"
        return CommandError(text, status=Status.NO_MEMORY, kind=kind)
    note("".join(traceback.format_exception(err)).rstrip())
    text = f"a defect of vramkit, please report it with the lines above: {kind}: {err}"
    return CommandError(text, status=Status.DEFECT, kind=kind)


def _tell(failure: CommandError, prog: str) -> None:
    if failure.status == Status.INTERRUPTED:
        return
    if isinstance(failure, UsageError):
        note(failure.usage)
        prog = failure.prog
    note(f"{prog}: {failure}")


def _parsers(given: list[str]) -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of the subcommands.

    Only a command that is named declares its options: these may need modules that others do not.
    """
    parser = Parser(
        prog="vramkit",
        description="Memory pools and memory budgets for PyTorch tensors.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vramkit {__version__}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {}
    for name, summary in _COMMANDS.items():
        module = _module_of(name)
        command = choices.add_parser(
            name, help=summary, description=module.__doc__, allow_abbrev=False
        )
        if name in given:
            module.add_arguments(command)
        commands[name] = command
    return parser, commands
