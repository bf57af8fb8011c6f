"""Convolution with ReLU on a GPU: vramkit beside PyTorch eager, in place, compiled, and cuDNN."""

import sys

import torch

from benchmarks._shared.harness import Recorder, parser, say
from benchmarks._shared.provenance import gpu_provenance, measure_this_tree
from benchmarks.conv.contest import bench_shape
from benchmarks.conv.host import bench_host
from benchmarks.conv.networks import NETWORKS, bench_network
from benchmarks.conv.passes import bench_passes
from benchmarks.conv.shapes import SHAPES
from benchmarks.conv.timing import ceilings

PARTS = ("forward", "training", "passes", "host", "networks")


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    add = options.add_argument
    add("--only", default=",".join(PARTS), help="parts, separated by commas")
    add("--shapes", default="", help="beginnings of names, separated by commas")
    add("--networks", default="", help="beginnings of names, separated by commas")
    add("--compiled", default="default,max-autotune", help="modes of torch.compile; may be empty")
    add("--rounds", type=int, default=15, help="turns of each contestant")
    add("--commit", help="label of the commit, where there is no repository")
    chosen = options.parse_args()
    parts = chosen.only.split(",")
    if set(parts) - set(PARTS):
        options.error(f"--only takes {', '.join(PARTS)}, got {chosen.only}")
    measure_this_tree()
    torch.backends.cudnn.benchmark = True
    origin = gpu_provenance(chosen.commit)
    recorder = Recorder(record=chosen.record, allow_dirty=chosen.allow_dirty, origin=origin)
    compiled = tuple(filter(None, chosen.compiled.split(",")))
    rounds = 5 if chosen.quick else chosen.rounds
    rates = ceilings()
    say(f"copy {rates[0] / 1e9:.2f} TB/s, matmul {rates[1] / 1e9:.0f} TFLOP/s")
    for part in ("forward", "training"):
        for shape in SHAPES if part in parts else ():
            if shape.name.startswith(tuple(chosen.shapes.split(","))):
                backward = part == "training"
                bench_shape(
                    *(recorder, shape, rates), compiled=compiled, rounds=rounds, backward=backward
                )
                torch.cuda.empty_cache()
    if "passes" in parts:
        bench_passes(recorder, rounds=rounds)
    if "host" in parts:
        bench_host(recorder, rounds=rounds)
    for name in NETWORKS if "networks" in parts else ():
        if name.startswith(tuple(chosen.networks.split(","))):
            bench_network(recorder, name, compiled=bool(compiled), rounds=rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
