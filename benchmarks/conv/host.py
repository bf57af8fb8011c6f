"""The host's share of a call: tensors so small that the GPU is never waited for.

The forward and the backward pass of many calls are timed apart, each from an idle GPU on. Their
kernels take the GPU less than the host takes to launch them, so the clock of the host shows what
the host needs.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._shared.harness import Recorder, Row, interleave, say, summarize

CALLS = 200
# How much more than the two modules one of vramkit may cost, forward or backward, in microseconds.
ALLOWED_US = 10
METRICS = ("host inference", "host forward", "host backward", "host forward+backward")


def bench_host(recorder: Recorder, *, rounds: int) -> None:
    """Compare calls of the modules with calls of PyTorch's two, forward and backward."""
    from vramkit.nn import ConvReLU2d, explain

    layers = {
        "vramkit": ConvReLU2d(8, 8, 3).cuda(),
        "mask": ConvReLU2d(8, 8, 3, save="mask").cuda(),
        "eager": nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()).cuda(),
    }
    x = torch.randn(1, 8, 8, 8, device="cuda")
    turns = interleave(
        {name: (lambda layer=layer: _measure_us(layer, x)) for name, layer in layers.items()},
        rounds=rounds,
        warm_up=2,
    )
    for name, case in (("vramkit", "8 channels"), ("mask", "8 channels, mask")):
        for metric in METRICS:
            own, eager = (
                summarize([turn[metric] for turn in turns[who]]) for who in (name, "eager")
            )
            recorder.add(Row("conv", case, metric, "us", own, {}, "eager", eager))
            say(f"  {own.median - eager.median:+.1f} us beside eager, {ALLOWED_US} are allowed")
        say(f"  node of {case}: {explain(layers[name], x).node}")
    _say_pieces(layers["vramkit"], x)


def _measure_us(layer: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, float]:
    """Return the microseconds of one call by what is done."""
    with torch.no_grad():
        inference = _clock_us(lambda: layer(x))
    outputs: list[Tensor] = []
    forward = _clock_us(lambda: outputs.append(layer(x)))
    grad = torch.ones_like(outputs[0])
    left = iter(outputs)
    backward = _clock_us(lambda: next(left).backward(grad))
    return dict(zip(METRICS, (inference, forward, backward, forward + backward), strict=True))


def _say_pieces(layer: nn.Module, x: Tensor) -> None:
    """Say what parts of a call of vramkit's module cost."""
    from vramkit.nn._ready import ready_call

    arguments = (x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, 1)
    call = ready_call(*arguments)
    if call is None:
        say("  each call is decided anew: a deterministic mode, or set_kernel_choice('default')")
        return
    look_up = _clock_us(lambda: ready_call(*arguments))
    forward = _clock_us(lambda: call(*arguments[:3]))
    with torch.no_grad():
        inference = _clock_us(lambda: call(*arguments[:3]))
    say(
        f"  of a call: look-up {look_up:.1f} us, operator {inference:.1f} us without a gradient, "
        f"{forward:.1f} us with one ({call.name}); the rest is the module's"
    )


def _clock_us(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / CALLS * 1e6
