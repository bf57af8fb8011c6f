"""Runs the models of ``others.py`` on a GPU, and estimates them without one.

``python -m benchmarks.estimate.others_run measure NAME`` and ``predict NAME [--target GPU] [--guess
allow]`` print one JSON object. A process runs one model only: what another has left in the
libraries or the allocator would count.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.estimate import own_run

_MODULE = "benchmarks.estimate.others_run"


def predict(name: str, target: str, guess: str) -> dict[str, Any]:
    """Estimate a model, or say why that cannot be done."""
    from benchmarks.estimate.others import OTHERS
    from vramkit.errors import UntraceableError

    try:
        return {"model": name, **own_run.predicted(OTHERS[name], target, guess=guess)}
    except UntraceableError as err:
        return {"model": name, "skipped": f"refused: {err}"}
    except ModuleNotFoundError as err:
        return {"model": name, "skipped": f"{err.name} is not installed"}


def measure(name: str) -> dict[str, Any]:
    """Run a model's steps on the GPU."""
    from benchmarks.estimate.others import OTHERS

    return {"model": name, **own_run.peaks(OTHERS[name])}


def compare(folder: Path, names: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Estimate, calibrate and measure; yields the figures of each model as soon as they are known.

    Args:
        folder: Where the file of the calibration is written.
        names: The models; all by default.

    Yields:
        For each model its ``guess``, ``predicted`` for the GPU by its name, ``calibrated`` with
        this GPU's convolutions measured, and ``measured``; or only why it was ``skipped``.
    """
    from benchmarks.estimate.others import OTHERS

    chosen, target = names or list(OTHERS), own_run.nearest_target()
    plain = {name: _apart("predict", name, "--target", target) for name in chosen}
    known = [each for each in plain.values() if "skipped" not in each]
    file = own_run.calibrated_file(folder, known)
    for name, predicted in plain.items():
        if "skipped" in predicted:
            yield predicted
            continue
        found = {
            "predicted": predicted,
            "calibrated": _apart("predict", name, "--target", str(file)),
            "measured": _apart("measure", name),
        }
        skipped = [each for each in found.values() if "skipped" in each]
        yield skipped[0] if skipped else {"model": name, "guess": guess_of(name), **found}


def _apart(what: str, name: str, *options: str) -> dict[str, Any]:
    """Predict or measure in a process of its own; one that fails does not end the others."""
    guess = ("--guess", guess_of(name)) if what == "predict" else ()
    try:
        return own_run.run("-m", _MODULE, what, name, *options, *guess)[0]
    except RuntimeError as err:
        return {"model": name, "skipped": f"{what} failed: {str(err).splitlines()[-1]}"}


def guess_of(name: str) -> str:
    """Whether a model's sizes that depend on data are guessed, as ``estimate`` takes it."""
    from benchmarks.estimate.others import GUESSED

    return "allow" if name in GUESSED else "refuse"


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("measure").add_argument("name")
    predicting = commands.add_parser("predict")
    predicting.add_argument("name")
    predicting.add_argument("--target", default="h100")
    predicting.add_argument("--guess", choices=("refuse", "allow"), default="refuse")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.what == "measure":
        found = measure(arguments.name)
    else:
        found = predict(arguments.name, arguments.target, arguments.guess)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
