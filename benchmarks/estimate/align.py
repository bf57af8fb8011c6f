"""Aligns a predicted step with a recorded trace.

``python -m benchmarks.estimate.align TRACE MODEL``

Prints the first places at which the sizes of allocated blocks differ, with the operator and the
line that the prediction has there.
"""

from __future__ import annotations

import argparse
import difflib
import os
import warnings
from pathlib import Path

from vramkit.estimate import estimate
from vramkit.estimate._peak import short_line
from vramkit.estimate._recorder import Block, Trace
from vramkit.simulate import load_trace


def differences(trace: Trace, recorded: list[int], limit: int) -> list[str]:
    """Return a line for each of the first places that differ.

    Args:
        trace: The predicted step.
        recorded: Sizes of the recorded allocations, in order.
        limit: Most lines to return.
    """
    sizes = [block.size_bytes for block in trace.blocks]
    matcher = difflib.SequenceMatcher(None, sizes, recorded, autojunk=False)
    found = []
    for kind, begin, end, other_begin, other_end in matcher.get_opcodes():
        if kind == "equal":
            continue
        before = _named(trace.blocks[begin - 1]) if begin else "the start"
        mine = ", ".join(_named(block) for block in trace.blocks[begin : min(end, begin + 4)])
        found.append(
            f"after {before}: predicted {mine or 'nothing'}; recorded "
            f"{recorded[other_begin:other_end][:8] or 'nothing'}"
        )
        if len(found) == limit:
            break
    return found


def _named(block: Block) -> str:
    return f"{block.size_bytes:,} B of {block.operator} ({block.module} {short_line(block.line)})"


def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("model")
    parser.add_argument("--limit", type=int, default=10)
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    from benchmarks.estimate.models import MODELS, import_torchvision

    import_torchvision()
    events = load_trace(arguments.trace)
    recorded = events.size_bytes[events.op == 0].tolist()
    found = differences(
        estimate(step=MODELS[arguments.model].make_step).trace, recorded, arguments.limit
    )
    print("\n".join(found) if found else "no allocation differs")


if __name__ == "__main__":
    main()
