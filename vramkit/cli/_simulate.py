"""Replay a recorded allocation trace through the pool, for any capacity, on any machine.

Exit status: 0 when the replay completes, 1 when the pool runs out, 2 for bad input.
"""

import argparse
import json
from pathlib import Path

from vramkit.cli._progress import ProgressLine

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
    parser.add_argument("--page", default="2MiB", help="size of a page (default: 2MiB)")
    parser.add_argument(
        "--repeat-step",
        nargs="?",
        type=int,
        const=ROUNDS,
        metavar="N",
        help=f"replay up to the heaviest step, and that step N times (default: {ROUNDS})",
    )
    parser.add_argument(
        "--device", type=int, metavar="N", help="device of a snapshot that holds several"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run ``vramkit simulate``; returns its exit status."""
    from vramkit import simulate
    from vramkit.units import parse_bytes

    options = simulate.Options(
        capacity=arguments.capacity,
        min_capacity=arguments.min_capacity,
        page_bytes=parse_bytes(arguments.page, name="page"),
        repeat_step=arguments.repeat_step,
        device=arguments.device,
    )
    with ProgressLine() as progress:
        outcome = simulate.simulate(arguments.trace, options, progress=progress)
    if arguments.json:
        print(json.dumps(simulate.to_json(outcome), indent=2))
    else:
        print(simulate.to_text(outcome, title=Path(arguments.trace).name))
    return 0 if outcome.completed else 1
