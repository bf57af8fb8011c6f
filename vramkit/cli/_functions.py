"""Finds the function of the user's that a command names."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from vramkit.cli._status import CommandError, Status
from vramkit.errors import InvalidArgumentError

_MODULE = "vramkit_named_program"


@contextlib.contextmanager
def user_code(name: str) -> Iterator[None]:
    """The scope in which the user's function is loaded and runs.

    What it prints goes to standard error, as standard output is the command's report. Arguments
    that it parses are none, as of ``python FILE``; those in ``sys.argv`` are the command's.

    Args:
        name: The function, for the message.

    Raises:
        CommandError: The user's code asks for the process to end.
    """
    arguments, sys.argv = sys.argv, [name.rpartition(":")[0]]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as err:
        raise CommandError(
            f"{name} called sys.exit({err.code!r}) before it was done; name a function that "
            "returns, in a file that can be imported",
            status=Status.BAD_INPUT,
            kind="SystemExit",
        ) from err
    finally:
        sys.argv = arguments


def load_function(name: str) -> Callable[..., Any]:
    """Return the function that ``file.py:function`` or ``package.module:function`` names.

    Raises:
        InvalidArgumentError: There is no such file, module or function.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise InvalidArgumentError(
            f"{name!r} names no function; write FILE:FUNCTION, such as train.py:make_step"
        )
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found = getattr(module, function, None)
    if not callable(found):
        raise InvalidArgumentError(f"{place} has no function {function!r}; check the name")
    made: Callable[..., Any] = found
    return made


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidArgumentError(f"there is no file {str(path)!r} in {Path.cwd()}")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as err:
        raise InvalidArgumentError(f"no module named {name!r}: {err}") from err
    if found is None:
        raise InvalidArgumentError(f"no module named {name!r}; it is looked for from {Path.cwd()}")
    return importlib.import_module(name)
