"""Estimate GPU memory without a GPU: of a step of yours, or of a large model by its config.json.

Exit status: 0 when it fits or no budget is given for a step, 1 when it does not fit, 2 for bad
input or usage, 74 when the output cannot be written.
"""

import argparse
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramkit.cli._arguments import integer
from vramkit.cli._functions import load_function, user_code
from vramkit.cli._output import note, write, write_json
from vramkit.cli._progress import ProgressLine
from vramkit.cli._status import CommandError, OutputError, Status
from vramkit.errors import EmptyStepError, InvalidArgumentError, VramkitError

if TYPE_CHECKING:
    from vramkit.estimate import Advice, Estimate

# Of a traced step only; None where not given.
_TRACED: dict[str, Any] = {"steps": 3, "guess": "refuse", "alloc_conf": "", "world_size": None}
_FILES = ("timeline", "events")


# Without the fifty options, so that a message about one of them can be found below.
_USAGE = "%(prog)s [-h] [options] FILE:FUNCTION\n       %(prog)s [-h] [options] --config FILE|NAME"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit estimate``."""
    from vramkit.estimate.config import _command

    parser.usage = _USAGE
    parser.add_argument(
        "step",
        nargs="?",
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
        help="bytes, '24GiB', or the name of a GPU: the exit status is 1 if the estimate does not "
        "fit (default with --config: the GPU's memory)",
    )
    parser.add_argument(
        "--advice", action="store_true", help="say what would make it fit the budget"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_traced(parser.add_argument_group("what is traced"))
    _command.add_arguments(parser)


def _add_traced(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--steps", type=integer(1), metavar="N", help="steps to trace (default: 3)")
    group.add_argument(
        "--guess",
        choices=("refuse", "allow"),
        help="whether results that depend on data may be guessed (default: refuse)",
    )
    group.add_argument(
        "--alloc-conf",
        metavar="CONF",
        help="what PYTORCH_ALLOC_CONF will hold, such as expandable_segments:True",
    )
    group.add_argument(
        "--world-size",
        type=integer(1),
        metavar="N",
        help="ranks that torch.distributed has in the step, of which rank 0 is estimated",
    )
    group.add_argument(
        "--timeline", type=Path, metavar="PATH", help="draw the memory into an .html or .png file"
    )
    group.add_argument(
        "--events", type=Path, metavar="PATH", help="write a trace that vramkit simulate replays"
    )


def run(arguments: argparse.Namespace) -> Status:
    """Run ``vramkit estimate``; returns its exit status."""
    from vramkit.estimate._timeline import check_name
    from vramkit.estimate.config import _command

    of_config = _command.given_options(arguments)
    if arguments.timeline is not None:
        check_name(arguments.timeline)
    if arguments.step is not None:
        if of_config:
            raise InvalidArgumentError(
                f"{', '.join(of_config)} cannot be used with a step ({arguments.step}); leave the "
                "step out to estimate a model from its configuration"
            )
        return _of_step(arguments)
    if not of_config:
        raise InvalidArgumentError(
            "nothing to estimate: give FILE:FUNCTION, such as train.py:make_step, or --config FILE"
        )
    if arguments.trace:
        return _of_model(arguments)
    names = [name for name in (*_TRACED, *_FILES) if getattr(arguments, name) is not None]
    if names:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise InvalidArgumentError(f"{flags} can only be used with a step or with --trace")
    return Status(_command.run(arguments, write))


def _of_model(arguments: argparse.Namespace) -> Status:
    """Trace a model that transformers builds, and print what the closed form says of it."""
    from vramkit.estimate._estimate import budget_bytes
    from vramkit.estimate.config import Serving, _command, trace_model
    from vramkit.estimate.config._results import part_of, room_in_words
    from vramkit.estimate.config._traced import closed_form_bytes

    if arguments.world_size is not None:
        raise InvalidArgumentError(
            "--world-size is for a step; with --config name ranks by --data, --tensor and others"
        )
    if arguments.advice or arguments.parameters or arguments.config is None:
        raise InvalidArgumentError(
            "--trace needs --config, and goes with neither --advice nor --parameters; leave it out "
            "for these"
        )
    options = _command.read_options(arguments.mode or "serve", vars(arguments))
    budget = budget_bytes(arguments.budget or arguments.target)
    part = options.utilisation if isinstance(options, Serving) else 1.0
    with ProgressLine(noun="step") as progress:
        given = {name: getattr(arguments, name) for name in _TRACED}
        tracing = {name: value for name, value in given.items() if value is not None}
        found = trace_model(
            arguments.config, options, target=arguments.target, progress=progress, **tracing
        )
    _write_files(arguments, found)
    fits = found.fits(part_of(budget, part))
    closed = closed_form_bytes(arguments.config, options, target=arguments.target)
    _report(arguments, found, fits, None, closed, f"into {room_in_words(budget, part)}")
    return Status.OK if fits else Status.DOES_NOT_FIT


def _of_step(arguments: argparse.Namespace) -> Status:
    from vramkit.estimate._estimate import budget_bytes

    budget = None if arguments.budget is None else budget_bytes(arguments.budget)
    if arguments.advice and budget is None:
        raise InvalidArgumentError("--advice needs a --budget to advise for")
    try:
        return _traced(arguments, budget)
    except EmptyStepError as err:
        raise EmptyStepError(f"{arguments.step}: {err}") from err
    except (VramkitError, CommandError, OutputError):
        raise
    except Exception as err:
        note("".join(traceback.format_exception(err)).rstrip())
        raise CommandError(
            f"{arguments.step} raised {type(err).__name__}: {err}",
            status=Status.BAD_INPUT,
            kind=type(err).__name__,
        ) from err


def _traced(arguments: argparse.Namespace, budget: int | None) -> Status:
    from vramkit.estimate import estimate

    given = {name: getattr(arguments, name) for name in _TRACED}
    options = {name: _TRACED[name] if value is None else value for name, value in given.items()}
    advice = None
    with user_code(arguments.step), ProgressLine(noun="step") as progress:
        found = estimate(
            step=load_function(arguments.step),
            target=arguments.target,
            progress=progress,
            **options,
        )
        if arguments.advice and budget is not None:
            advice = found.advice(budget)
    _write_files(arguments, found)
    fits = None if budget is None else found.fits(budget)
    _report(arguments, found, fits, advice, None)
    return Status.DOES_NOT_FIT if fits is False else Status.OK


def _write_files(arguments: argparse.Namespace, found: "Estimate") -> None:
    for path, save in ((arguments.timeline, found.timeline), (arguments.events, found.save_events)):
        try:
            if path is not None:
                save(path)
        except OSError as err:
            raise InvalidArgumentError(
                f"{str(path)!r} cannot be written: {err.strerror or err}; write elsewhere"
            ) from err


def _report(
    arguments: argparse.Namespace,
    found: "Estimate",
    fits: bool | None,
    advice: "Advice | None",
    closed: int | None,
    room: str = "the budget",
) -> None:
    from vramkit.estimate.config._results import budget_note

    if arguments.json:
        report: dict[str, Any] = found.as_dict()
        if fits is not None:
            report["fits"] = fits
        if advice is not None:
            report["advice"] = advice.as_dict()
        if closed is not None:
            report["closed_form_bytes"] = closed
        write_json(report)
        return
    write(str(found))
    if closed is not None:
        percent = 100 * (closed / found.peak_requested_bytes - 1)
        write(f"\nThe closed form gives {closed:,} requested bytes, {percent:+.2f} %.")
    if fits is not None:
        what = "step" if closed is None else "model"
        note_of_budget = budget_note(arguments.target, arguments.budget)
        verdict = f"The {what} {'fits' if fits else 'does not fit'} {room}. {note_of_budget}"
        write(f"\n{verdict.rstrip()}")
    if advice is not None:
        write(f"\n{advice}")
