"""The host's share of a call: tensors so small that the GPU is never waited for."""

import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks._shared.harness import Recorder, Row, interleave, summarize

CALLS = 200


def bench_host(recorder: Recorder, *, rounds: int) -> None:
    """Compare a call of the module with two of PyTorch's, forward and backward."""
    from vramkit.nn import ConvReLU2d

    pair = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()).cuda()
    own = ConvReLU2d(8, 8, 3).cuda()
    x = torch.randn(1, 8, 8, 8, device="cuda")
    for metric, gradient in (("host forward", False), ("host forward+backward", True)):
        turns = interleave(
            {
                name: (lambda layer=layer, g=gradient: _call_us(layer, x, g))
                for name, layer in (("vramkit", own), ("eager", pair))
            },
            rounds=rounds,
            warm_up=2,
        )
        found = {name: summarize(samples) for name, samples in turns.items()}
        recorder.add(
            Row("conv", "8 channels", metric, "us", found["vramkit"], {}, "eager", found["eager"])
        )


def _call_us(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, grad: bool) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.set_grad_enabled(grad):
        for _ in range(CALLS):
            output = layer(x)
            if grad:
                output.sum().backward()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / CALLS * 1e6
