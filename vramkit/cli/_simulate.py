"""Replay a recorded allocation trace through the pool, for any capacity, on any machine.

Exit status: 0 when the replay completes, 1 when the pool runs out, 2 for bad input or usage, 71
when this machine has no memory left, 74 when the output cannot be written.
"""

import argparse
from pathlib import Path

from vramkit.cli._arguments import integer
from vramkit.cli._output import write, write_json
from vramkit.cli._progress import ProgressLine
from vramkit.cli._status import Status

# How often --repeat-step repeats when it is given without a number.
ROUNDS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit simulate``."""
    parser.add_argument(
        "trace",
        metavar="TRACE",
        help="an .npz trace, or a file written by torch.cuda.memory._dump_snapshot",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--capacity",
        help="the pool's capacity: bytes, '12GiB', or a multiple of the trace's peak live bytes "
        "such as '1.01x' (the default); rounded down to whole pages",
    )
    size.add_argument(
        "--min-capacity",
        action="store_true",
        help="find the smallest capacity that completes",
    )
    parser.add_argument(
        "--page",
        default="2MiB",
        help="size of a page, a power of two from 64KiB to 1GiB (default: 2MiB)",
    )
    parser.add_argument(
        "--repeat-step",
        nargs="?",
        type=integer(1),
        const=ROUNDS,
        metavar="N",
        help=f"replay up to the heaviest step, and that step N times (default: {ROUNDS})",
    )
    parser.add_argument(
        "--device", type=integer(0), metavar="N", help="device of a snapshot that holds several"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> Status:
    """Run ``vramkit simulate``; returns its exit status."""
    from vramkit import simulate
    from vramkit.pool._capacity import checked_page_bytes

    options = simulate.Options(
        capacity=arguments.capacity,
        min_capacity=arguments.min_capacity,
        page_bytes=checked_page_bytes(arguments.page, name="--page"),
        repeat_step=arguments.repeat_step,
        device=arguments.device,
    )
    with ProgressLine() as progress:
        outcome = simulate.simulate(arguments.trace, options, progress=progress)
    if arguments.json:
        write_json(simulate.to_json(outcome))
    else:
        write(simulate.to_text(outcome, title=Path(arguments.trace).name))
    return Status.OK if outcome.completed else Status.DOES_NOT_FIT
