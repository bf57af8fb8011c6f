"""Runs the steps of ``parallel.py`` on several GPUs, and estimates them without any.

``python -m benchmarks.estimate.parallel_run measure|predict [--ranks N] [--target GPU] [STEP ...]``
prints one JSON object a line, for rank 0. To measure, start it with ``torch.distributed.run``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.estimate import own_run

COLUMNS = (*own_run.COLUMNS, "device")
_MODULE = "benchmarks.estimate.parallel_run"


def predict(name: str, ranks: int, target: str) -> dict[str, Any]:
    """Estimate a step as rank 0 of ``ranks``."""
    from benchmarks.estimate.parallel import PARALLEL

    return {"step": name, **own_run.predicted(PARALLEL[name], target, world_size=ranks)}


def measure(name: str) -> dict[str, Any]:
    """Run a step's rounds as one of the ranks, in a process that has run nothing before."""
    import torch
    import torch.distributed as dist

    from benchmarks.estimate.parallel import PARALLEL

    sizes = own_run.peaks(PARALLEL[name])
    found = {"step": name, "rank": dist.get_rank(), **sizes}
    free, total = torch.cuda.mem_get_info()
    dist.destroy_process_group()
    return {**found, "device": total - free}


def compare(folder: Path, ranks: int, names: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Calibrate, estimate and measure; yields the figures of each step as soon as they are known.

    Args:
        folder: Where the file of the calibration is written.
        ranks: How many GPUs take part, at least two.
        names: The steps; all by default.

    Yields:
        For each step ``predicted`` and ``measured``, of rank 0.
    """
    from benchmarks.estimate.parallel import PARALLEL
    from vramkit.estimate import calibrate

    file = folder / "gpu.json"
    calibrate(file, repeats=1)
    chosen = names or list(PARALLEL)
    words = ["-m", _MODULE, "predict", "--ranks", str(ranks), "--target", str(file)]
    predicted = own_run.run(*words, *chosen)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    for each in predicted:
        lines = own_run.run(*launch, "-m", _MODULE, "measure", each["step"])
        first = next(line for line in lines if line["rank"] == 0)
        yield {"step": each["step"], "predicted": each, "measured": first}


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("measure", "predict"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--target", default="h100")
    parser.add_argument("steps", nargs="*")
    arguments = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore")
    from benchmarks.estimate.parallel import PARALLEL

    for name in arguments.steps or PARALLEL:
        if arguments.what == "measure":
            found = measure(name)
        else:
            found = predict(name, arguments.ranks, arguments.target)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
