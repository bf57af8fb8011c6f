"""The passes over a convolution's output: bytes moved in a second, beside a copy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._shared.harness import Recorder, Row, Summary, interleave, summarize
from benchmarks.conv.timing import captured, copies_of, sample_ms

# Batch, channels, pixels in a row: VGG's first layers and ResNet's last ones.
SIZES = ((64, 64, 224), (128, 256, 56), (128, 512, 14))


@dataclass(frozen=True)
class Pass:
    """A pass, what it works on, and its bytes for each byte of the convolution's output."""

    work: Callable[[Any], object]
    inputs: list[Any]
    traffic: float


def _passes(x: Tensor, bias: Tensor) -> dict[str, Pass]:
    ops: Any = torch.ops.vramkit
    inputs = copies_of(x)
    pairs = list(zip(inputs, [*inputs[1:], inputs[0]], strict=True))
    masks = [ops.relu_mask_(t.clone(), bias) for t in inputs]
    masked = list(zip(inputs, masks, strict=True))
    bits = 1 / 16  # a mask has a bit for each element of two bytes
    return {
        "copy": Pass(lambda t: t.clone(), inputs, 2),
        "bias_relu_": Pass(lambda t: ops.bias_relu_(t, bias), inputs, 2),
        "relu_mask_": Pass(lambda t: ops.relu_mask_(t, bias), inputs, 2 + bits),
        "relu_backward": Pass(lambda p: ops.relu_backward(*p, True), pairs, 3),
        "relu_mask_backward": Pass(lambda p: ops.relu_mask_backward(*p, True), masked, 2 + bits),
    }


def _rates(passes: dict[str, Pass], size: int, rounds: int) -> dict[str, Summary]:
    replays = {name: captured(one.work, one.inputs) for name, one in passes.items()}
    calls = {
        name: partial(sample_ms, replay, len(passes[name].inputs))
        for name, replay in replays.items()
    }
    turns = interleave(calls, rounds=rounds, warm_up=2)
    return {
        name: summarize([passes[name].traffic * size / ms / 1e6 for ms in samples])
        for name, samples in turns.items()
    }


def bench_passes(recorder: Recorder, *, rounds: int) -> None:
    """Measure each pass beside PyTorch's copy of the same tensor; bias gradients included."""
    import vramkit._ops  # noqa: F401 - registers the passes

    for shape in SIZES:
        x = torch.randn(*shape, shape[2], device="cuda", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        bias = torch.randn(shape[1], device="cuda", dtype=torch.bfloat16)
        rates = _rates(_passes(x, bias), x.nbytes, rounds)
        copy = rates.pop("copy")
        for name, rate in rates.items():
            case = f"{name} {'x'.join(map(str, x.shape))}"
            recorder.add(
                Row("conv", case, "rate", "GB/s", rate, {"dtype": "bfloat16"}, "copy", copy)
            )
