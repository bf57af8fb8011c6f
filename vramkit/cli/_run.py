"""Run an unmodified Python script or module inside a memory pool.

Exit status: the script's own. It is 2, and nothing has run, when the options or the budget cannot
work.
"""

import argparse
import functools
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from vramkit.errors import InvalidArgumentError

_USAGE = (
    "%(prog)s [options] --budget SIZE SCRIPT [ARGUMENT ...]\n"
    "       %(prog)s [options] --budget SIZE -m MODULE [ARGUMENT ...]"
)


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
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        metavar="MODULE",
        help="run a module, as 'python -m' does; what follows are its arguments",
    )
    parser.add_argument("script", nargs="?", metavar="SCRIPT", help="a Python file")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="the script's arguments"
    )


def run(arguments: argparse.Namespace) -> Callable[[], int]:
    """Check the command line; returns the function that runs the script inside the pool."""
    program = _program(arguments)
    from vramkit.pool import MemoryPool

    pool = MemoryPool(
        _capacity(arguments.budget),
        device=arguments.device or _device_of_this_rank(),
        overflow=arguments.overflow,
        record_stacks=arguments.record_stacks,
    )

    def run_inside() -> int:
        try:
            with pool:
                program()
        finally:
            if arguments.summary:
                print(pool.memory_summary(), file=sys.stderr)
        return 0

    return run_inside


def _capacity(text: str) -> str | float:
    """Read a plain fraction as a number: to the pool, a text is always a size."""
    try:
        fraction = float(text)
    except ValueError:
        return text
    return fraction if "." in text and 0.0 < fraction <= 1.0 else text


def _device_of_this_rank() -> str | None:
    """Under torchrun the pool is made before the script chooses its device: choose the rank's."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdecimal() or not torch.cuda.is_available():
        return None
    return f"cuda:{rank}" if int(rank) < torch.cuda.device_count() else None


def _program(arguments: argparse.Namespace) -> Callable[[], object]:
    """Find what to run, and set ``sys.argv`` and ``sys.path`` as Python would."""
    if arguments.module is not None:
        return _module(arguments.module)
    if arguments.script is None:
        raise InvalidArgumentError("nothing to run: give a script, or -m and a module")
    return _script(arguments.script, arguments.arguments)


def _module(words: list[str]) -> Callable[[], object]:
    if not words:
        raise InvalidArgumentError("-m needs the name of a module")
    name, *rest = words
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as err:
        raise InvalidArgumentError(f"no module named {name!r}: {err}") from err
    if found is None:
        raise InvalidArgumentError(f"no module named {name!r}; it is looked for from {Path.cwd()}")
    sys.argv = [name, *rest]
    return functools.partial(runpy.run_module, name, run_name="__main__", alter_sys=True)


def _script(script: str, rest: list[str]) -> Callable[[], object]:
    path = Path(script)
    if not path.exists():
        raise InvalidArgumentError(f"there is no file {script!r} in {Path.cwd()}")
    if not os.access(path, os.R_OK):
        raise InvalidArgumentError(f"the file {script!r} cannot be read; check its permissions")
    sys.argv = [script, *rest]
    if path.is_dir() or path.suffix in (".zip", ".pyz"):
        return functools.partial(runpy.run_path, script, run_name="__main__")
    sys.path.insert(0, str(path.resolve().parent))
    return functools.partial(_execute, script)


def _execute(script: str) -> None:
    """Run a file as ``__main__``; unlike runpy's, that module stays until the process ends.

    So exit handlers, and what the script has pickled by reference, still find it.
    """
    code = compile(Path(script).read_bytes(), script, "exec")
    main = ModuleType("__main__")
    main.__file__ = script
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    exec(code, main.__dict__)
