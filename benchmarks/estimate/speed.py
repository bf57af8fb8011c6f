"""How long an estimate of a large model takes: ``python -m benchmarks.estimate.speed [--record]``.

Llama models of 1 and 70 billion parameters, bfloat16 with fused AdamW, one sequence of 1,024
tokens, each in a process of its own. Wanted: under 10 s and under 20 s on two cores, and 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks._shared.harness import Recorder, Row, summarize
from benchmarks._shared.provenance import ROOT

_MODELS: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "llama-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}


def make_step(name: str) -> Callable[[], None]:
    """Build model, optimizer and data; returns what runs one step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**_MODELS[name])).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, 1000, (1, 1024), device="cuda")

    def step() -> None:
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def time_one(name: str) -> dict[str, float]:
    """Estimate in this process; returns seconds, and the most memory that the process held."""
    from vramkit.estimate import estimate

    begin = time.perf_counter()
    found = estimate(step=lambda: make_step(name))
    seconds = time.perf_counter() - begin
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "resident_bytes": resident, "parameters": found.parameters}


def main() -> int:
    """Print a row for each figure of each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="append the rows to results/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=_MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(time_one(arguments.one)))
        return 0
    recorder = Recorder(record=arguments.record, allow_dirty=False)
    for name in _MODELS:
        command = [sys.executable, "-m", "benchmarks.estimate.speed", "--one", name]
        rounds = [
            json.loads(subprocess.check_output(command, cwd=ROOT, text=True).splitlines()[-1])
            for _ in range(arguments.rounds)
        ]
        for metric, unit in (("seconds", "s"), ("resident_bytes", "B")):
            own = summarize([found[metric] for found in rounds])
            recorder.add(Row("estimate_speed", name, metric, unit, own, {}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
