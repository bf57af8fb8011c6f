"""The exit statuses of the command, and the failures that end it."""

from enum import IntEnum


class Status(IntEnum):
    """What the shell is told; ``docs/cli.md`` lists them."""

    OK = 0
    DOES_NOT_FIT = 1
    BAD_INPUT = 2
    # The three of sysexits.h.
    DEFECT = 70
    NO_MEMORY = 71
    OUTPUT_LOST = 74
    # What a shell reports of a program that ends by SIGINT or SIGPIPE.
    INTERRUPTED = 130
    CLOSED_PIPE = 141


class CommandError(Exception):
    """A failure of a command, with its exit status.

    Attributes:
        status: The exit status.
        kind: Name of the exception that it stands for, for programs.
    """

    def __init__(self, message: str, *, status: Status, kind: str) -> None:
        """Keep all three."""
        super().__init__(message)
        self.status = status
        self.kind = kind


class UsageError(CommandError):
    """A command line that cannot be read.

    Attributes:
        usage: How the command is used.
        prog: The command with its subcommand.
    """

    def __init__(self, message: str, *, usage: str, prog: str) -> None:
        """It is bad input."""
        super().__init__(message, status=Status.BAD_INPUT, kind="UsageError")
        self.usage = usage
        self.prog = prog


class OutputError(Exception):
    """Standard output cannot be written.

    Attributes:
        status: The exit status: a closed pipe is no failure to tell of.
    """

    def __init__(self, error: OSError) -> None:
        """Take the system's reason."""
        super().__init__(f"standard output cannot be written: {error.strerror or error}")
        broken = isinstance(error, BrokenPipeError)
        self.status = Status.CLOSED_PIPE if broken else Status.OUTPUT_LOST
