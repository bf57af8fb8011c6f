"""Measures a GPU for estimates: ``vramkit calibrate``.

Each measurement runs in a process of its own (``_calibrate_worker.py``), because a context, a
library's first use and a communicator can be measured only once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vramkit.errors import CalibrationError, InvalidArgumentError, UnsupportedDeviceError
from vramkit.estimate._calibration import COLUMNS, write_calibration
from vramkit.estimate._target import Target

Progress = Callable[[int, int], None]

_WORKER = "vramkit.estimate._calibrate_worker"
_TIMEOUT_S = 600
# What most training steps use; the first uses of the others are kept apart.
_OTHER_LIBRARIES = ("cuSOLVER", "cuFFT", "cuSPARSE")
# These change what PyTorch's allocator or the libraries take.
_DISTURBING = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG")


def calibrate(
    path: str | os.PathLike[str],
    *,
    step: Callable[..., Any] | None = None,
    convolutions: Iterable[str] = (),
    nccl: bool = True,
    repeats: int = 3,
    progress: Progress | None = None,
) -> Target:
    """Measure the first GPU that is visible, and write what ``target=`` reads.

    Nothing else may use the GPU meanwhile: other processes' memory would be counted.

    Args:
        path: The ``.json`` file to write.
        step: A step, as for :func:`estimate`: its convolutions are measured.
        convolutions: Signatures of further convolutions, as ``trace.unmeasured`` of an estimate
            lists them.
        nccl: Whether NCCL is measured where two GPUs are visible.
        repeats: How often context and libraries are measured.
        progress: Called with the measurements done and their total.

    Returns:
        The GPU, as :func:`find_target` reads it from the file.

    Raises:
        CalibrationError: A measurement ended without a result.
        InvalidArgumentError: An argument cannot be used.
        UnsupportedDeviceError: There is no GPU.
    """
    from vramkit.estimate._targets import find_target

    file = Path(path)
    if file.suffix != ".json":
        raise InvalidArgumentError(f"the file must end in .json, got {str(path)!r}")
    if repeats < 1:
        raise InvalidArgumentError(f"repeats must be at least 1, got {repeats}")
    pair = _count_gpus() >= 2 and nccl
    report = _reporter(progress, repeats + 2)
    runs = []
    for _ in range(repeats):
        runs.append(_measured("libraries", {}))
        report()
    wanted = _wanted(step, convolutions, runs[0])
    workspaces = _measured("convolutions", {"signatures": wanted})["workspaces"] if wanted else {}
    report()
    communicators = _measured_pair() if pair else {}
    write_calibration(_content(runs, workspaces, communicators), file)
    report()
    return find_target(file)


def _reporter(progress: Progress | None, total: int) -> Callable[[], None]:
    """Return what tells of one measurement more that is done."""
    done = itertools.count(1)

    def report() -> None:
        if progress is not None:
            progress(next(done), total)

    return report


def _count_gpus() -> int:
    """Number of visible GPUs; asking starts no context in this process."""
    import torch

    count = torch.cuda.device_count() if torch.version.cuda else 0
    if not count:
        why = "sees none" if torch.version.cuda else "is built without CUDA"
        raise UnsupportedDeviceError(
            f"calibration measures a GPU, but torch {torch.__version__} {why}; run it on the "
            "machine that the estimates are for (estimates themselves need no GPU)"
        )
    return count


def _wanted(
    step: Callable[..., Any] | None, convolutions: Iterable[str], run: dict[str, Any]
) -> list[str]:
    """The signatures to measure: those given, and those of the step's convolutions."""
    from vramkit.estimate._calibrate_worker import parse_signature

    found = dict.fromkeys(convolutions)
    for name in found:
        parse_signature(name)
    if step is not None:
        from vramkit.estimate._api import estimate
        from vramkit.estimate._calibration import FORMAT, VERSION, target_of

        # A target without any workspaces, so that all of the step's convolutions are listed.
        content = {"format": FORMAT, "version": VERSION, **_content([run], {}, {})}
        target = target_of(content, "the measured GPU")
        found |= dict.fromkeys(estimate(step=step, target=target, steps=1).trace.unmeasured)
    return list(found)


def _content(
    runs: Sequence[dict[str, Any]], workspaces: dict[str, Any], communicators: dict[str, int]
) -> dict[str, Any]:
    first = runs[0]
    outside = sorted(run["outside_bytes"] for run in runs)
    uses = {
        name: int(statistics.median(run["first_uses"][name] for run in runs))
        for name in first["first_uses"]
    }
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    return {
        "name": "".join(c if c.isalnum() else "-" for c in first["gpu"]["title"].lower()),
        "source": f"vramkit calibrate on {today}",
        "versions": first["versions"],
        "gpu": first["gpu"],
        "outside": {
            "bytes": int(statistics.median(outside)),
            "low_bytes": outside[0],
            "high_bytes": outside[-1],
            "source": f"{len(runs)} processes that trained a small network",
            "first_uses": uses,
        },
        "workspaces": first["workspaces"],
        "library_bytes": {name: uses[name] for name in _OTHER_LIBRARIES if name in uses},
        "communicator_bytes": communicators,
        "convolutions": {"columns": COLUMNS, "workspaces": workspaces},
    }


def _environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _DISTURBING} | more


def _start(kind: str, wanted: str, **more: str) -> subprocess.Popen[str]:
    """Start a worker that has all of its input, so that several can wait for each other."""
    worker = subprocess.Popen(
        [sys.executable, "-m", _WORKER, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(**more),
    )
    assert worker.stdin is not None, "it was asked for"
    with contextlib.suppress(BrokenPipeError), worker.stdin as pipe:
        pipe.write(wanted)
    worker.stdin = None
    return worker


def _measured(kind: str, wanted: dict[str, Any]) -> dict[str, Any]:
    return _finish(kind, _start(kind, json.dumps(wanted)))


def _finish(kind: str, worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a worker and read its last line."""
    try:
        output, errors = worker.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as err:
        raise CalibrationError(
            f"measuring {kind} has taken {_TIMEOUT_S} s; try again while nothing else uses the GPU"
        ) from err
    finally:
        _end(worker)
    lines = output.strip().splitlines()
    if worker.returncode or not lines:
        tail = "\n".join(errors.strip().splitlines()[-5:])
        raise CalibrationError(f"measuring {kind} failed with status {worker.returncode}:\n{tail}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _end(worker: subprocess.Popen[str]) -> None:
    """Leave neither the process nor its pipes behind."""
    if worker.poll() is None:
        worker.kill()
    with worker:
        pass


def _measured_pair() -> dict[str, int]:
    """NCCL between two processes; the larger figure of both counts."""
    with tempfile.TemporaryDirectory(prefix="vramkit-") as folder:
        store = str(Path(folder) / "store")
        workers = [
            _start("nccl", "{}", VRAMKIT_RANK=str(rank), VRAMKIT_STORE=store) for rank in range(2)
        ]
        try:
            found = [_finish("NCCL", worker) for worker in workers]
        finally:
            for worker in workers:
                _end(worker)
    return {name: max(each[name] for each in found) for name in found[0]}
