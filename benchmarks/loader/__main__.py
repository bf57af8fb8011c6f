"""The data loader: rows gathered by native threads, and whole loaders beside PyTorch's.

Without a GPU, batches are delivered in host memory; with one, on it.
"""

import sys

import torch

from benchmarks._shared.harness import Recorder, parser
from benchmarks._shared.provenance import gpu_provenance, measure_this_tree
from benchmarks.loader.epochs import bench_epochs
from benchmarks.loader.gather import bench_gather
from benchmarks.loader.overlap import bench_overlap
from benchmarks.loader.permutation import bench_permutation
from benchmarks.loader.startup import bench_startup

PARTS = ("gather", "permutation", "epochs", "startup", "overlap")


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__ or "")
    options.add_argument("--peers-only", action="store_true", help="leave vramkit out of gather")
    options.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options.add_argument(
        "--cases",
        default="",
        help="beginnings of the names of cases, except of gather and permutation",
    )
    options.add_argument("--rounds", type=int, help="turns of each loader (3, quick: 1)")
    options.add_argument("--window-s", type=float, default=2.0, help="seconds of a turn")
    options.add_argument("--commit", help="label of the commit, where there is no repository")
    chosen = options.parse_args()
    parts = chosen.only.split(",")
    if set(parts) - set(PARTS):
        options.error(f"--only takes {', '.join(PARTS)}, got {chosen.only}")
    measure_this_tree()
    on_gpu = torch.cuda.is_available()
    origin = gpu_provenance(chosen.commit) if on_gpu else None
    recorder = Recorder(record=chosen.record, allow_dirty=chosen.allow_dirty, origin=origin)
    if "gather" in parts:
        bench_gather(recorder, quick=chosen.quick, with_own=not chosen.peers_only)
    if "permutation" in parts:
        bench_permutation(recorder, quick=chosen.quick)
    if "startup" in parts:
        bench_startup(recorder, on_gpu=on_gpu, quick=chosen.quick, prefixes=chosen.cases)
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    for part, bench in (("epochs", bench_epochs), ("overlap", bench_overlap)):
        if part in parts:
            bench(
                recorder,
                on_gpu=on_gpu,
                rounds=rounds,
                window_s=chosen.window_s,
                prefixes=chosen.cases,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
