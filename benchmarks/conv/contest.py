"""One convolution with ReLU: vramkit's module beside its peers, forward and with gradients."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks._shared.harness import Recorder, Row, Summary, interleave, say, summarize
from benchmarks.conv.shapes import Shape
from benchmarks.conv.timing import captured, copies_of, sample_ms

Layer = Callable[[torch.Tensor], torch.Tensor]
BENCH = "conv"


def contestants(conv: nn.Conv2d, compiled: tuple[str, ...]) -> dict[str, Layer]:
    """Return vramkit's module and its peers, all with the same parameters."""
    from vramkit.nn import ConvReLU2d

    given = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    own = ConvReLU2d(*given, groups=conv.groups)
    own.weight, own.bias = conv.weight, conv.bias
    fused = (conv.weight, conv.bias, conv.stride, conv.padding, (1, 1), conv.groups)
    layers: dict[str, Layer] = {
        "vramkit": own,
        "eager": lambda x: F.relu(conv(x)),
        "inplace": lambda x: F.relu_(conv(x)),
        "cudnn_fused": lambda x: torch.cudnn_convolution_relu(x, *fused),
    }
    for mode in compiled:
        # A program of its own for each mode, without CUDA graphs, which are captured here.
        options = {"max_autotune": mode == "max-autotune"}
        layers[f"compile-{mode}"] = torch.compile(
            lambda x: F.relu(conv(x)), dynamic=False, options=options
        )
    return layers


def bench_shape(
    recorder: Recorder,
    shape: Shape,
    rates: tuple[float, float],
    *,
    compiled: tuple[str, ...],
    rounds: int,
    backward: bool,
) -> None:
    """Measure one shape, and add a row for each peer."""
    torch._dynamo.reset()
    form = torch.channels_last
    half = shape.kernel // 2
    conv = nn.Conv2d(
        *(shape.channels, shape.outputs, shape.kernel, shape.stride, half), groups=shape.groups
    ).to("cuda", torch.bfloat16, memory_format=form)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, device="cuda")
    inputs = copies_of(x.bfloat16().contiguous(memory_format=form))
    byte_ms, flop_ms = 2 * shape.elements / rates[0], shape.flops / rates[1]
    floor = max(byte_ms, flop_ms)
    layers = contestants(conv, compiled)
    for given in inputs:
        given.requires_grad_(backward and shape.channels > 4)
    grad = torch.randn_like(layers["eager"](inputs[0]))
    replays, failed = {}, []
    for name, layer in layers.items():
        if backward and name == "cudnn_fused":
            continue
        work = _with_gradients(layer, conv, grad) if backward else torch.no_grad()(layer)
        try:
            replays[name] = captured(work, inputs)
        except Exception as err:  # noqa: BLE001 - a peer's failure must not end the run
            failed.append(name)
            say(f"{shape.name}: {name} failed: {str(err)[:100]}")
    turns = interleave(
        {n: (lambda r=r: sample_ms(r, len(inputs))) for n, r in replays.items()},
        rounds=rounds,
        warm_up=2,
    )
    _report(recorder, shape, {n: summarize(t) for n, t in turns.items()}, floor, failed, backward)
    _explain(layers["vramkit"], inputs[0], backward)


def _with_gradients(layer: Layer, conv: nn.Conv2d, grad: torch.Tensor) -> Layer:
    def work(x: torch.Tensor) -> torch.Tensor:
        wanted = [t for t in (x, conv.weight, conv.bias) if t.requires_grad]
        return torch.autograd.grad(layer(x), wanted, grad)

    return work


def _explain(layer: Layer, x: torch.Tensor, backward: bool) -> None:
    from vramkit.nn import explain
    from vramkit.nn._selection import _State

    with torch.set_grad_enabled(backward):
        say(str(explain(layer, x)))
    if backward:
        for key, choice in list(_State.known.items())[-2:]:
            say(f"gradient of {key[0]}: {choice.name} of {choice}")


def _report(
    recorder: Recorder,
    shape: Shape,
    found: dict[str, Summary],
    floor: float,
    failed: list[str],
    backward: bool,
) -> None:
    own = found["vramkit"]
    metric = "forward+backward" if backward else "forward"
    settings = {"floor_ms": floor, "failed": ",".join(failed), "dtype": "bfloat16"}
    for peer, summary in found.items():
        if peer != "vramkit":
            recorder.add(Row(BENCH, shape.name, metric, "ms", own, settings, peer, summary))
    if not backward:
        bound = Summary(floor, floor, floor, 1)
        recorder.add(Row(BENCH, shape.name, metric, "ms", own, settings, "floor", bound))
