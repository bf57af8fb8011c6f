"""Whole networks in training: images a second and peak memory."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from benchmarks._shared.harness import Recorder, Row, Summary, interleave, say, summarize


def _vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def _depthwise() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU()]
    channels = 32
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers += [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, width, 1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_pair(a, b) for a, b in ((3, 64), (64, 128), (128, 256)))
        self.up = nn.ModuleList(_pair(a + b, b) for a, b in ((256, 128), (128, 64)))
        self.pool, self.grow, self.head = nn.MaxPool2d(2), nn.Upsample(scale_factor=2), _head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down[0](x)
        second = self.down[1](self.pool(first))
        x = self.down[2](self.pool(second))
        x = self.up[0](torch.cat((self.grow(x), second), 1))
        return self.head(self.up[1](torch.cat((self.grow(x), first), 1)))


def _pair(channels: int, width: int) -> nn.Sequential:
    first = nn.Conv2d(channels, width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())


def _head() -> nn.Module:
    return nn.Sequential(nn.Conv2d(64, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _resnet50() -> nn.Module:
    import timm

    return timm.create_model("resnet50")


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "vgg16": (_vgg16, 64, 224),
    "unet": (_UNet, 16, 256),
    "depthwise": (_depthwise, 128, 224),
    "resnet50": (_resnet50, 128, 224),
}


def bench_network(recorder: Recorder, name: str, *, compiled: bool, rounds: int) -> None:
    """Train one network by turns: fused, plain, with in-place ReLUs, and compiled."""
    from vramkit.nn import fuse_conv_relu

    make, batch, size = NETWORKS[name]
    try:
        plain = make().to("cuda", memory_format=torch.channels_last)
    except ImportError as err:
        say(f"skipped: {name} ({err})")
        return
    inplace = copy.deepcopy(plain)
    for module in inplace.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    models = {"vramkit": fuse_conv_relu(copy.deepcopy(plain)), "eager": plain, "inplace": inplace}
    if compiled:
        models["compile"] = torch.compile(copy.deepcopy(plain))
        models["vramkit-compile"] = torch.compile(fuse_conv_relu(copy.deepcopy(plain)))
    x = torch.randn(batch, 3, size, size, device="cuda")
    x = x.contiguous(memory_format=torch.channels_last)
    steps = {n: (lambda m=m: _step(m, x)) for n, m in models.items()}
    turns = interleave(steps, rounds=rounds, warm_up=3)
    for metric, unit, index in (("step", "ms", 0), ("peak memory", "MiB", 1)):
        found: dict[str, Summary] = {
            n: summarize([t[index] for t in taken]) for n, taken in turns.items()
        }
        own = found["vramkit"]
        settings = {"batch": batch, "size": size}
        for peer, summary in found.items():
            if peer != "vramkit":
                recorder.add(Row("conv", name, metric, unit, own, settings, peer, summary))


def _step(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Return the milliseconds of three steps' mean, and the peak above what was there before."""
    model.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
    end.record()
    end.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return begin.elapsed_time(end) / 3, peak / (1 << 20)
