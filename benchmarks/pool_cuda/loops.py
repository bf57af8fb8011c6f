"""The GPU loops of the CUDA benchmark: real models, random weights, data of varying shape.

A loop's ``make`` builds the model and returns a function that runs one step. All sizes are drawn
from the generator that it is given, so that every allocator sees the same requests.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pool_cuda.text_loops import (
    Step,
    backward_and_step,
    kv_generate,
    llama,
    offload_streams,
    serve_threads,
)

Make = Callable[[random.Random], Step]
LLAMA = "transformers.models.llama.modeling_llama"


@dataclass(frozen=True)
class Loop:
    """A loop, how many steps it has, and what its sizes are drawn from."""

    make: Make
    what: str
    steps: int
    seed: int
    needs: str | None = None
    timing: bool = False  # how much is alive at once depends on how fast the streams are
    records_streams: bool = False
    one_at_a_time: bool = False  # contestants together would fill the device, or the host's memory

    @property
    def missing(self) -> str | None:
        """The package that this loop needs and that is not installed."""
        package = (self.needs or "torch").partition(".")[0]
        return None if find_spec(package) else package


def _resnet() -> tuple[nn.Module, torch.optim.Optimizer]:
    model: nn.Module = import_module("timm").create_model("resnet50")
    model = model.to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def _classify(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    with torch.autocast("cuda", torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    return backward_and_step(optimizer, loss)


def resnet_multiscale(draw: random.Random) -> Step:
    """ResNet-50 on images whose side and number change from step to step."""
    model, optimizer = _resnet()

    def step() -> torch.Tensor:
        side, count = (
            draw.choice([128, 160, 192, 224, 256, 288, 320]),
            draw.choice([48, 64, 96, 128]),
        )
        x = torch.randn(count, 3, side, side, device="cuda")
        x = x.contiguous(memory_format=torch.channels_last)
        return _classify(model, optimizer, x, torch.randint(0, 1000, (count,), device="cuda"))

    return step


def resnet_prefetch(draw: random.Random) -> Step:
    """ResNet-50; a side stream copies the next batch, and the main stream is recorded on it."""
    model, optimizer = _resnet()
    side_stream = torch.cuda.Stream()
    host = torch.randn(128, 3, 288, 288).pin_memory()

    def load() -> tuple[torch.Tensor, torch.Tensor]:
        side, count = draw.choice([160, 192, 224, 256, 288]), draw.choice([48, 64, 96, 128])
        with torch.cuda.stream(side_stream):
            pinned = host[:count, :, :side, :side].contiguous().pin_memory()
            x = pinned.to("cuda", non_blocking=True)
            x = x.contiguous(memory_format=torch.channels_last)
            y = torch.randint(0, 1000, (count,)).pin_memory().to("cuda", non_blocking=True)
        return x, y

    loaded = [load()]

    def step() -> torch.Tensor:
        main_stream = torch.cuda.current_stream()
        main_stream.wait_stream(side_stream)
        x, y = loaded.pop()
        x.record_stream(main_stream)
        y.record_stream(main_stream)
        loaded.append(load())
        return _classify(model, optimizer, x, y)

    return step


class _UNet(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [
                _two_convs(3, width),
                _two_convs(width, 2 * width),
                _two_convs(2 * width, 4 * width),
                _two_convs(4 * width, 8 * width),
            ]
        )
        self.up = nn.ModuleList(
            [
                _two_convs(12 * width, 4 * width),
                _two_convs(6 * width, 2 * width),
                _two_convs(3 * width, width),
            ]
        )
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            image = block(image)
            if level < 3:
                skips.append(image)
                image = F.max_pool2d(image, 2)
        for block in self.up:
            skip = skips.pop()
            image = F.interpolate(image, size=skip.shape[2:])
            image = block(torch.cat([image, skip], 1))
        return self.head(image)  # type: ignore[no-any-return]


def _two_convs(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


def unet_tiles(draw: random.Random) -> Step:
    """A U-Net with Adam on tiles of any height and width."""
    model = _UNet().to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> torch.Tensor:
        count = draw.choice([2, 4, 8])
        height, width = draw.randrange(160, 640, 16), draw.randrange(160, 640, 16)
        x = torch.randn(count, 3, height, width, device="cuda")
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.mse_loss(model(x), x)
        return backward_and_step(optimizer, loss)

    return step


class _GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = import_module("torch_geometric.nn").SAGEConv
        self.layers = nn.ModuleList([layer(256, 512), layer(512, 512), layer(512, 64)])

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        for level, layer in enumerate(self.layers):
            x = layer(x, edges)
            if level < 2:
                x = F.relu(x)
        return x


def gnn_sampled(draw: random.Random) -> Step:
    """A graph network on sampled graphs of 20,000 to 300,000 nodes."""
    model = _GraphNet().to("cuda")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> torch.Tensor:
        nodes = draw.randrange(20_000, 300_000)
        edges = nodes * draw.randrange(5, 20)
        x = torch.randn(nodes, 256, device="cuda")
        ends = torch.randint(0, nodes, (2, edges), device="cuda")
        loss = model(x, ends).square().mean()
        return backward_and_step(optimizer, loss)

    return step


LOOPS = {
    "resnet_multiscale": Loop(
        resnet_multiscale, "timm resnet50, 128 to 320 px, batch 48 to 128, SGD", 40, 0, "timm"
    ),
    "llama_ckpt": Loop(
        lambda draw: llama(draw, checkpointed=True),
        "16-layer Llama, gradient checkpointing, 1 to 6 x 256 to 3,071 tokens, AdamW",
        30,
        1,
        LLAMA,
    ),
    "unet_tiles": Loop(unet_tiles, "U-Net, tiles of 160 to 624 px, batch 2 to 8, Adam", 40, 4),
    "gnn_sampled": Loop(
        gnn_sampled,
        "3-layer SAGEConv, sampled graphs of 20 k to 300 k nodes, Adam",
        40,
        5,
        "torch_geometric.nn",
    ),
    "resnet_prefetch": Loop(
        resnet_prefetch,
        "timm resnet50, next batch copied on a side stream, SGD",
        25,
        7,
        "timm",
        timing=True,
        records_streams=True,
    ),
    "offload_streams": Loop(
        offload_streams,
        "12-layer Llama, saved activations to pinned memory and back on two side streams, AdamW",
        12,
        8,
        LLAMA,
        timing=True,
        records_streams=True,
        one_at_a_time=True,
    ),
    "serve_threads": Loop(
        serve_threads,
        "four threads serving one Llama with growing KV caches, a stream each",
        8,
        9,
        LLAMA,
        timing=True,
    ),
    "llama_plain": Loop(
        lambda draw: llama(draw, checkpointed=False),
        "16-layer Llama, 1 to 6 x 256 to 3,071 tokens, AdamW",
        30,
        1,
        LLAMA,
        one_at_a_time=True,
    ),
    "kv_generate": Loop(
        kv_generate, "generation with growing KV caches, 1 to 16 prompts at once", 16, 6, LLAMA
    ),
}
