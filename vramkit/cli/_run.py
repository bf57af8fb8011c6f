"""Run an unmodified Python script or module inside a memory pool.

Exit status: the script's own. It is 2, and nothing has run, when the options or the budget cannot
work.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vramkit.cli import _program
from vramkit.cli._budget import capacity_of, read_budget
from vramkit.cli._output import note
from vramkit.errors import ForkedPoolError, InvalidArgumentError

if TYPE_CHECKING:
    from vramkit.pool import MemoryPool

_USAGE = (
    "%(prog)s [options] --budget SIZE SCRIPT [ARGUMENT ...]\n"
    "       %(prog)s [options] --budget SIZE -m MODULE [ARGUMENT ...]"
)


_WITH_VALUE = ("--budget", "--device", "--overflow")

# The pool of the program: its scope is open until the process ends, for threads and exit handlers.
_pools: "list[MemoryPool]" = []


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell vramkit's own words from the program's, which begin with ``-m`` or the script.

    >>> split(["--budget", "8GiB", "train.py", "--", "--summary"])
    (['--budget', '8GiB'], ['train.py', '--', '--summary'])
    """
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return list(words[:at]), list(words[at + 1 :])
        if word in ("-m", "-") or not word.startswith("-"):
            break
        at += 2 if word in _WITH_VALUE else 1
    return list(words[:at]), list(words[at:])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit run``."""
    parser.usage = _USAGE
    parser.add_argument(
        "--budget",
        required=True,
        metavar="SIZE",
        help="the pool's capacity: bytes, '8GiB', or a part of the device's free memory such as "
        "'0.5'",
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help="whose tensors the pool serves: 'cuda', 'cuda:1' or 'cpu' (default: the current CUDA "
        "device, under torchrun that of LOCAL_RANK, or the CPU where there is none)",
    )
    parser.add_argument(
        "--overflow",
        choices=("error", "native"),
        default="error",
        help="what happens beyond the budget: an out-of-memory error (the default), or PyTorch's "
        "own allocator",
    )
    parser.add_argument(
        "--record-stacks",
        action="store_true",
        help="name the source lines of the largest tensors in an out-of-memory error",
    )
    parser.add_argument(
        "--summary",
        action="store_true",
        help="print the pool's statistics to standard error when the script ends",
    )


def run(arguments: argparse.Namespace) -> Callable[[], int]:
    """Check the command line; returns the function that runs the program inside the pool.

    Args:
        arguments: The options, and as ``program`` the program's words.
    """
    if not arguments.program:
        raise InvalidArgumentError("nothing to run: give a script, or -m and a module")
    program = _program.find(arguments.program)
    from vramkit.pool import MemoryPool
    from vramkit.pool._device import pool_device

    budget = read_budget(arguments.budget)
    device = pool_device(arguments.device or _device_of_this_rank())
    capacity_of(budget, device)  # an error that names --budget
    pool = MemoryPool(
        budget,
        device=device.name,
        overflow=arguments.overflow,
        record_stacks=arguments.record_stacks,
    )
    _pools.append(pool)

    def run_inside() -> int:
        pool.activate()
        try:
            program()
        except BaseException as err:
            _program.hide_frames_of_vramkit()
            _advise(err)
            raise
        finally:
            if arguments.summary:
                _summarize(pool)
        return 0

    return run_inside


def _summarize(pool: "MemoryPool") -> None:
    try:
        note(pool.memory_summary())
    except ForkedPoolError:
        return  # a child that the program has forked; its parent prints the summary
    except ValueError:
        return  # the program has closed standard error


def _advise(err: BaseException) -> None:
    """Add to the pool's advice, which is for programs, what the command line can do."""
    texts = (each for each in err.args if isinstance(each, str))
    if any("vramkit pool on " in text and "To go on:" in text for text in texts):
        err.add_note(
            "Under `vramkit run`, give the pool more memory with --budget, or send such requests "
            "to PyTorch's allocator with --overflow native."
        )


def _device_of_this_rank() -> str | None:
    """Under torchrun the pool is made before the script chooses its device: choose the rank's."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdecimal() or not torch.cuda.is_available():
        return None
    return f"cuda:{rank}" if int(rank) < torch.cuda.device_count() else None
