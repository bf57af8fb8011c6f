"""Records what a GPU's allocator is asked for by calls of operators: ``swept|strided FILE``.

Each block taken (+) and given back (-) between the call of an operator, or its backward pass, and
its end, the results included; the second of two calls, as libraries allocate at their first use.
``tests/estimate/swept-operators-h200.json`` and ``strided-operators-h200.json`` were made so (torch
2.11.0+cu130).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.phases import Case
from helpers.strided_operators import STRIDED
from helpers.swept_operators import SWEPT

_CATALOGUES = {"swept": SWEPT, "strided": STRIDED}

_SIGNS = {"alloc": 1, "free_requested": -1}
_ENTRIES = 100_000


def _recorded(call: Callable[[], Any]) -> tuple[Any, list[int]]:
    torch.cuda.synchronize()
    torch.cuda.memory._record_memory_history(
        "all", context=None, max_entries=_ENTRIES, clear_history=True
    )
    try:
        result = call()
        [entries, *_] = torch.cuda.memory._snapshot()["device_traces"]
    finally:
        torch.cuda.memory._record_memory_history(None)
    signs = [(_SIGNS.get(each["action"], 0), each["size"]) for each in entries]
    return result, [sign * size for sign, size in signs if sign]


def record(case: Case) -> dict[str, list[int]]:
    """Call an operator, and its backward pass if it has one."""
    function, inputs = case()
    found: dict[str, list[int]] = {}
    result, found["fwd"] = _recorded(lambda: function(*inputs))
    if isinstance(result, torch.Tensor) and result.requires_grad:
        gradient, kept = torch.ones_like(result), [result]
        del result
        _, found["bwd"] = _recorded(lambda: kept.pop().backward(gradient))
    return found


def main() -> int:
    """Write the file; returns the exit status."""
    if not torch.cuda.is_available():
        print("no GPU: there is nothing to record")
        return 75
    lines = []
    for name, case in sorted(_CATALOGUES[sys.argv[1]].items()):
        try:
            record(case)
            found = record(case)
        except (RuntimeError, TypeError) as err:
            print(f"{name} is left out: {err}")
            continue
        lines.append(f" {json.dumps(name)}: {json.dumps(found)}")
    Path(sys.argv[2]).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
