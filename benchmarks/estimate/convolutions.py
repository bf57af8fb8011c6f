"""Makes the table of measured convolution workspaces from recorded operator allocations.

``python -m benchmarks.estimate.convolutions RECORDED.jsonl``: each line of the file has ``op``, a
case such as ``conv x[32, 3, 224, 224] w[64, 3, 7, 7] s[2, 2] p[3, 3] g1 float32 nchw fwd``, and
``seq``, what the allocator was asked for (+) and given back (-) inside it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from vramkit.estimate._calibrate_worker import dropped_at_once

TABLE = Path("vramkit/estimate/_data/h100.json")
_CASE = re.compile(
    r"conv x\[(?P<x>[\d, ]+)\] w\[(?P<w>[\d, ]+)\] s\[(?P<s>[\d, ]+)\] p\[(?P<p>[\d, ]+)\] "
    r"g(?P<g>\d+) (?P<dtype>\w+) (?P<layout>cl|nchw)(?P<bias> bias)? (?P<what>fwd|bwd)"
)


def workspaces(lines: list[str]) -> dict[str, list[int]]:
    """Return forward, input gradient and weight gradient workspace by signature."""
    table: dict[str, list[int]] = {}
    for line in lines:
        record = json.loads(line)
        match = _CASE.fullmatch(record.get("op", ""))
        if match is None or "error" in record:
            continue
        entry = table.setdefault(_signature(match), [0, 0, 0])
        if match["what"] == "fwd":
            entry[0] = dropped_at_once(record["seq"], 1)[0]
        else:
            entry[1:] = dropped_at_once(record["seq"], 2)
            # The bias's gradient, which comes next, may be dropped at once too.
            if match["bias"] and entry[2] == _bias_bytes(match):
                entry[2] = 0
    return table


def _signature(match: re.Match[str]) -> str:
    sizes = ("x".join(match[name].split(", ")) for name in ("x", "w"))
    numbers = ",".join(f"{match['s']},{match['p']},1,1".replace(" ", "").split(","))
    layout = "nhwc" if match["layout"] == "cl" else "nchw"
    return f"{' '.join(sizes)} {numbers} {match['g']} {match['dtype']} {layout}"


def _bias_bytes(match: re.Match[str]) -> int:
    return int(match["w"].split(",")[0]) * (4 if match["dtype"] == "float32" else 2)


def main(path: str) -> None:
    """Write the table."""
    table = workspaces(Path(path).read_text(encoding="utf-8").splitlines())
    rows = ",\n".join(f"   {json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table))
    before = TABLE.read_text(encoding="utf-8").partition('"workspaces": {\n   ')
    TABLE.write_text(f'{before[0]}"workspaces": {{\n{rows}\n  }}\n }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
