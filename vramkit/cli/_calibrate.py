"""Measure a GPU for estimates, and write the file that ``--target`` of the other commands reads.

Nothing else may use the GPU meanwhile. Exit status: 0 when the file was written, 2 for bad input or
usage and where there is no GPU.
"""

import argparse
from pathlib import Path

from vramkit.cli._arguments import integer
from vramkit.cli._functions import load_function, user_code
from vramkit.cli._output import write, write_json
from vramkit.cli._progress import ProgressLine
from vramkit.cli._status import Status
from vramkit.errors import InvalidArgumentError
from vramkit.units import format_mib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit calibrate``."""
    parser.add_argument(
        "step",
        nargs="?",
        metavar="FILE:FUNCTION",
        help="a step as for vramkit estimate, whose convolutions are measured, too",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("gpu.json"),
        metavar="PATH",
        help="the .json file to write (default: gpu.json)",
    )
    parser.add_argument(
        "--convolutions",
        type=Path,
        metavar="PATH",
        help="a text file with signatures of convolutions to measure, one a line",
    )
    parser.add_argument(
        "--repeats",
        type=integer(1, 100),
        default=3,
        metavar="N",
        help="how often context and libraries are measured (default: 3)",
    )
    parser.add_argument("--no-nccl", action="store_true", help="leave NCCL out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> Status:
    """Run ``vramkit calibrate``; returns its exit status."""
    from vramkit.estimate import calibrate

    with user_code(str(arguments.step)), ProgressLine(noun="measurement") as progress:
        step = None if arguments.step is None else load_function(arguments.step)
        found = calibrate(
            arguments.output,
            step=step,
            convolutions=_signatures(arguments.convolutions),
            nccl=not arguments.no_nccl,
            repeats=arguments.repeats,
            progress=progress,
        )
    if arguments.json:
        outside = {"outside_bytes": found.outside_bytes, "total_bytes": found.total_bytes}
        write_json({"file": str(arguments.output), "target": found.name, **outside})
        return Status.OK
    write(
        f"{found.title}: {format_mib(found.outside_bytes)} outside PyTorch's allocator, "
        f"{format_mib(found.cublas_bytes)} for each handle of cuBLAS\n"
        f"written to {arguments.output}; use it by --target {arguments.output}"
    )
    return Status.OK


def _signatures(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidArgumentError(f"{str(path)!r} cannot be read: {err}") from err
    return [line.strip() for line in lines if line.strip()]
