"""Train a small Conv+ReLU classifier on handwritten digits inside a memory pool.

The same training runs outside the pool first; every loss must be the same, bit for bit. Writes a
picture of the pool's memory over time. Exit status: 0 for success, 1 when the accuracy or the
losses are not as required or the budget is too small, 2 for bad input or usage, 71 when this
machine has no memory left, 74 when the picture or the output cannot be written.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vramkit.cli._arguments import integer
from vramkit.cli._budget import capacity_of, read_budget
from vramkit.cli._output import note, write, write_json
from vramkit.cli._status import Status
from vramkit.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch

# PyTorch takes seeds of 64 bits.
_LARGEST_SEED = (1 << 64) - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit demo``."""
    parser.add_argument(
        "--budget",
        help="the pool's capacity: bytes, a size such as '16MiB' (the default on the CPU) or "
        "'128MiB' (on a GPU, where libraries keep workspaces), or a part of the free memory such "
        "as 0.5",
    )
    parser.add_argument(
        "--epochs",
        type=integer(1),
        default=12,
        metavar="N",
        help="how often all training images are seen (default: 12)",
    )
    parser.add_argument(
        "--seed",
        type=integer(0, _LARGEST_SEED),
        default=0,
        metavar="N",
        help="of weights and order (default: 0)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("vramkit-demo.png"),
        metavar="PNG",
        help="where the picture goes (default: vramkit-demo.png)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> Status:
    """Run ``vramkit demo``; returns its exit status."""
    _check_out(arguments.out)
    from vramkit.cli._demo._needs import require_packages

    require_packages()

    from vramkit.cli._demo._outcome import to_json, to_text
    from vramkit.cli._demo._run import Plan, device_note, run_demo, training_device
    from vramkit.cli._demo._training import load_digits
    from vramkit.pool import MemoryPool

    device = training_device()
    budget_bytes = check_budget(arguments.budget, device)
    digits = load_digits()
    note(
        f"vramkit demo: {len(digits.train_digits):,} images of handwritten digits to train on, "
        f"{len(digits.test_digits):,} to test on, on {device_note(device)}"
    )
    pool = MemoryPool(budget_bytes, device=device)
    outcome = run_demo(digits, device, pool, Plan(arguments.epochs, arguments.seed, arguments.out))
    if arguments.json:
        write_json(to_json(outcome))
    else:
        write("\n\n".join([pool.memory_summary(), to_text(outcome)]))
    for fault in outcome.faults:
        note(f"vramkit demo: {fault}")
    return Status.DOES_NOT_FIT if outcome.faults else Status.OK


def check_budget(text: str | None, device: "torch.device") -> int:
    """The pool's capacity in bytes; refused before any data is loaded.

    Args:
        text: A size such as ``"16MiB"``, or a part of the free memory such as ``"0.5"``; ``None``
            is what the demo needs.
        device: Where the pool will be.

    Raises:
        CapacityError: It cannot be read, is less than a page, or more than there is.
    """
    from vramkit.cli._demo._run import budget_for
    from vramkit.pool._device import pool_device

    capacity = read_budget(text or budget_for(device))
    return capacity_of(capacity, pool_device(device))


def _check_out(out: Path) -> None:
    """Refuse at once what would fail after the training."""
    folder = out.parent
    try:
        if not folder.is_dir():
            raise InvalidArgumentError(
                f"--out {out}: there is no folder {folder}; make it, or name another"
            )
        if out.is_dir():
            raise InvalidArgumentError(f"--out {out} is a folder; name a file in it")
        target = out if out.exists() else folder
    except OSError as err:
        raise InvalidArgumentError(f"--out {out} cannot be used ({err.strerror})") from err
    if not os.access(target, os.W_OK):
        raise InvalidArgumentError(f"--out {out}: you may not write to {target}; name another")
