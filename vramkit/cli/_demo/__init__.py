"""Train a small Conv+ReLU classifier on handwritten digits inside a memory pool.

The same training runs outside the pool first; every loss must be the same, bit for bit. Writes a
picture of the pool's memory over time. Exit status: 0 when all is well, 1 when the accuracy or the
losses are not as they must be or the budget is too small, 2 for bad input.
"""

import argparse
import json
import sys
from pathlib import Path

from vramkit.errors import InvalidArgumentError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit demo``."""
    parser.add_argument(
        "--budget",
        help="the pool's capacity: bytes or a text (default: '16MiB' on the CPU, '128MiB' on a "
        "GPU, where libraries keep workspaces)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=12,
        metavar="N",
        help="how often all training images are seen (default: 12)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights and order (default: 0)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("vramkit-demo.png"),
        metavar="PNG",
        help="where the picture goes (default: vramkit-demo.png)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run ``vramkit demo``; returns its exit status."""
    _check(arguments)
    from vramkit.cli._demo._needs import require_packages

    require_packages()
    import torch

    from vramkit.cli._demo._outcome import to_json, to_text
    from vramkit.cli._demo._run import Plan, budget_for, device_note, run_demo, training_device
    from vramkit.cli._demo._training import load_digits
    from vramkit.pool import MemoryPool

    device = training_device()
    digits = load_digits().to(device)
    print(
        f"vramkit demo: {len(digits.train_digits):,} images of handwritten digits to train on, "
        f"{len(digits.test_digits):,} to test on, on {device_note(device)}",
        file=sys.stderr,
    )
    pool = MemoryPool(arguments.budget or budget_for(device), device=device)
    plan = Plan(epochs=arguments.epochs, seed=arguments.seed, out=arguments.out)
    try:
        outcome = run_demo(digits, pool, plan)
    except torch.OutOfMemoryError as err:
        print(f"vramkit demo: the budget is too small (--budget). {err}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(to_json(outcome), indent=2))
    else:
        print(pool.memory_summary(), to_text(outcome), sep="\n\n")
    for fault in outcome.faults:
        print(f"vramkit demo: {fault}", file=sys.stderr)
    return 1 if outcome.faults else 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse at once what would fail after the training."""
    if arguments.epochs < 1:
        raise InvalidArgumentError(f"--epochs must be at least 1, got {arguments.epochs}")
    folder = arguments.out.parent
    if not folder.is_dir():
        raise InvalidArgumentError(
            f"--out {arguments.out}: there is no folder {folder}; make it, or name another"
        )
    if arguments.out.is_dir():
        raise InvalidArgumentError(f"--out {arguments.out} is a folder; name a file in it")
