"""Estimates the GPU memory of a training or inference step, without a GPU."""

import argparse
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vramkit.cli._arguments import integer
from vramkit.cli._output import note, write, write_json
from vramkit.cli._progress import ProgressLine
from vramkit.cli._status import CommandError, Status
from vramkit.errors import InvalidArgumentError, VramkitError

if TYPE_CHECKING:
    from vramkit.estimate import Advice, Estimate

_MODULE = "vramkit_estimated_program"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit estimate``."""
    parser.add_argument(
        "step",
        metavar="FILE:FUNCTION",
        help="a function without arguments that builds model, optimizer and data on 'cuda' and "
        "returns a function that runs one step; in a file, or in a module (package.train:make)",
    )
    parser.add_argument(
        "--target", default="h100", metavar="GPU", help="the GPU, such as a100-80gb (default: h100)"
    )
    parser.add_argument(
        "--budget",
        metavar="SIZE",
        help="bytes, '24GiB', or the name of a GPU: the exit status is 1 if the step does not fit",
    )
    parser.add_argument(
        "--advice", action="store_true", help="say what would make the step fit the budget"
    )
    parser.add_argument(
        "--steps", type=integer(1), default=3, metavar="N", help="steps to trace (default: 3)"
    )
    parser.add_argument(
        "--guess",
        choices=("refuse", "allow"),
        default="refuse",
        help="whether results that depend on data may be guessed (default: refuse)",
    )
    parser.add_argument(
        "--alloc-conf",
        default="",
        metavar="CONF",
        help="what PYTORCH_ALLOC_CONF will hold, such as expandable_segments:True",
    )
    parser.add_argument(
        "--timeline", type=Path, metavar="PATH", help="draw the memory into an .html or .png file"
    )
    parser.add_argument(
        "--events", type=Path, metavar="PATH", help="write a trace that vramkit simulate replays"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> Status:
    """Run ``vramkit estimate``; returns its exit status."""
    from vramkit.estimate._estimate import budget_bytes

    budget = None if arguments.budget is None else budget_bytes(arguments.budget)
    if arguments.advice and budget is None:
        raise InvalidArgumentError("--advice needs a --budget to advise for")
    try:
        return _run(arguments, budget)
    except VramkitError:
        raise
    except Exception as err:
        note("".join(traceback.format_exception(err)).rstrip())
        raise CommandError(
            f"{arguments.step} raised {type(err).__name__}: {err}",
            status=Status.BAD_INPUT,
            kind=type(err).__name__,
        ) from err


def _run(arguments: argparse.Namespace, budget: int | None) -> Status:
    from vramkit.estimate import estimate

    with ProgressLine(noun="step") as progress:
        found = estimate(
            step=load_function(arguments.step),
            target=arguments.target,
            steps=arguments.steps,
            guess=arguments.guess,
            alloc_conf=arguments.alloc_conf,
            progress=progress,
        )
    if arguments.timeline is not None:
        found.timeline(arguments.timeline)
    if arguments.events is not None:
        found.save_events(arguments.events)
    fits = None if budget is None else found.fits(budget)
    advice = found.advice(budget) if arguments.advice and budget is not None else None
    _report(found, fits, advice, as_json=arguments.json)
    return Status.DOES_NOT_FIT if fits is False else Status.OK


def _report(
    found: "Estimate", fits: bool | None, advice: "Advice | None", *, as_json: bool
) -> None:
    if as_json:
        report: dict[str, Any] = found.as_dict()
        if fits is not None:
            report["fits"] = fits
        if advice is not None:
            report["advice"] = advice.as_dict()
        write_json(report)
        return
    write(str(found))
    if fits is not None:
        write(f"\nThe step {'fits' if fits else 'does not fit'} the budget.")
    if advice is not None:
        write(f"\n{advice}")


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
