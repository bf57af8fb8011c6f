"""Runs the models of ``own.py`` on a GPU, and estimates them without one.

``python -m benchmarks.estimate.own_run measure|predict [--target GPU] [MODEL ...]`` prints one JSON
object a line. Both run in processes of their own, so that neither sees what the other allocated.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks._shared.provenance import ROOT
from benchmarks.estimate.training import MakeStep

COLUMNS = ("requested", "allocated", "reserved")
_STEPS = 3
_TIMEOUT_S = 600
_MODULE = "benchmarks.estimate.own_run"
_PREDICT = ("-m", _MODULE, "predict")


def predict(name: str, target: str) -> dict[str, Any]:
    """Estimate a model."""
    from benchmarks.estimate.own import OWN

    return {"model": name, **predicted(OWN[name], target)}


def predicted(make: MakeStep, target: str, **options: Any) -> dict[str, Any]:
    """Estimate a step with further options of ``estimate``."""
    from vramkit.estimate import estimate

    begin = time.perf_counter()
    found = estimate(step=make, target=target, steps=_STEPS, **options)
    return {
        "requested": found.peak_requested_bytes,
        "allocated": found.peak_allocated_bytes,
        "reserved": found.reserved_bytes["native"],
        "device": found.device_bytes,
        "unmeasured": list(found.trace.unmeasured),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def measure(name: str) -> dict[str, Any]:
    """Run a model's steps on the GPU; the allocator starts empty."""
    import torch

    from benchmarks.estimate.own import OWN

    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return {"model": name, **peaks(OWN[name]), "left_bytes": before}


def peaks(make: MakeStep) -> dict[str, int]:
    """Build a step and run it; returns the most bytes that PyTorch's allocator has counted."""
    import torch

    torch.manual_seed(0)
    step = make()
    for _ in range(_STEPS):
        step()
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    return {column: stats[f"{column}_bytes.all.peak"] for column in COLUMNS}


def run(*words: str) -> list[dict[str, Any]]:
    """Run Python in a process of its own; returns the objects that it prints."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def nearest_target() -> str:
    """The name of this machine's GPU where estimates know it, otherwise the H100's."""
    import torch

    from vramkit.errors import InvalidArgumentError
    from vramkit.estimate import find_target

    try:
        return find_target(torch.cuda.get_device_properties(0).name).name
    except InvalidArgumentError:
        return "h100"


def compare(folder: Path, names: list[str] | None = None) -> list[dict[str, Any]]:
    """Estimate, calibrate and measure; returns the figures of each model.

    Args:
        folder: Where the file of the calibration is written.
        names: The models; all by default.

    Returns:
        For each model ``predicted`` for the GPU by its name, ``calibrated`` with this GPU's
        convolutions measured, and ``measured``.
    """
    chosen, target = names or [], nearest_target()
    plain = {each["model"]: each for each in run(*_PREDICT, "--target", target, *chosen)}
    file = calibrated_file(folder, plain.values())
    again = [name for name, each in plain.items() if each["unmeasured"]]
    lines = run(*_PREDICT, "--target", str(file), *again) if again else []
    calibrated = {**plain, **{each["model"]: each for each in lines}}
    measured = {each["model"]: each for each in run("-m", _MODULE, "measure", *chosen)}
    return [
        {
            "model": name,
            "predicted": plain[name],
            "calibrated": calibrated[name],
            "measured": measured[name],
        }
        for name in plain
    ]


def calibrated_file(folder: Path, estimates: Iterable[dict[str, Any]]) -> Path:
    """Measure this GPU with the convolutions that estimates know by a formula only."""
    from vramkit.estimate import calibrate

    file = folder / "gpu.json"
    signatures = {name: None for each in estimates for name in each["unmeasured"]}
    calibrate(file, convolutions=signatures, nccl=False, repeats=1)
    return file


def error(found: dict[str, Any], column: str, kind: str = "calibrated") -> float:
    """How far an estimate is from what was measured, in percent."""
    measured = found["measured"][column]
    return float(100 * (found[kind][column] / measured - 1))


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("measure", "predict"))
    parser.add_argument("--target", default="h100")
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore")
    from benchmarks.estimate.own import OWN

    for name in arguments.models or OWN:
        found = measure(name) if arguments.what == "measure" else predict(name, arguments.target)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
