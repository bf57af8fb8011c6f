"""Estimate the memory of a large model from its configuration, for serving or training.

Exit status: 0 when the model fits, 1 when it does not, 2 for bad input or usage, 74 when the output
cannot be written.
"""

import argparse

from vramkit.cli._output import write
from vramkit.cli._status import Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit estimate-config``."""
    from vramkit.estimate.config import _command

    _command.add_arguments(parser)


def run(arguments: argparse.Namespace) -> Status:
    """Run ``vramkit estimate-config``; returns its exit status."""
    from vramkit.estimate.config import _command

    return Status(_command.run(arguments, write))
