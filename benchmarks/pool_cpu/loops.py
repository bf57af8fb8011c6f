"""The training loops of the CPU benchmark: each makes a function that runs one fp32 step.

Loops whose sizes vary run through one whole cycle of sizes a step, so that all steps are alike.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

Step = Callable[[], float]


@dataclass(frozen=True)
class Loop:
    """A loop: how to make it, what it is, and how many steps make a turn."""

    make: Callable[[], Step]
    what: str
    lead_in: int
    steps: int
    small: bool


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> float:
    loss = torch.zeros(())
    for inputs, targets in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
    return loss.item()


def conv_net() -> Step:
    """Three convolutions with ReLU over a batch of 32 x 3 x 128 x 128."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    batch = (torch.randn(32, 3, 128, 128), torch.randn(32, 10))
    return lambda: _train(model, optimizer, [batch])


def wide_mlp() -> Step:
    """Six blocks of Linear, LayerNorm and GELU over 16,384 x 512."""
    blocks = [(nn.Linear(512, 512), nn.LayerNorm(512), nn.GELU()) for _ in range(6)]
    model = nn.Sequential(*(layer for block in blocks for layer in block))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batch = (torch.randn(16_384, 512), torch.randn(16_384, 512))
    return lambda: _train(model, optimizer, [batch])


class _UNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([_conv(3, width), _conv(width, 2 * width)])
        self.bottom = _conv(2 * width, 4 * width)
        self.up = nn.ModuleList([_conv(6 * width, 2 * width), _conv(3 * width, width)])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips = []
        for block in self.down:
            image = block(image)
            skips.append(image)
            image = F.max_pool2d(image, 2)
        image = self.bottom(image)
        for block in self.up:
            image = F.interpolate(image, scale_factor=2.0)
            image = block(torch.cat([image, skips.pop()], dim=1))
        return self.head(image)  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())


def unet_tiles() -> Step:
    """A small U-Net with Adam over tiles of six sizes, four a batch."""
    model = _UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sides = (160, 96, 224, 128, 192, 112)
    batches = [(torch.randn(4, 3, s, s), torch.randn(4, 1, s, s)) for s in sides]
    return lambda: _train(model, optimizer, batches)


def transformer() -> Step:
    """Two transformer blocks with AdamW over sequences of six lengths, four a batch."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    lengths = (384, 96, 512, 224, 320, 160)
    batches = [(torch.randn(4, n, 256), torch.randn(4, n, 256)) for n in lengths]
    return lambda: _train(model, optimizer, batches)


def small_mlp() -> Step:
    """Four small Linear layers over 32 x 64."""
    model = nn.Sequential(
        *(layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batch = (torch.randn(32, 64), torch.randn(32, 10))
    return lambda: _train(model, optimizer, [batch])


def small_rnn() -> Step:
    """A GRU cell unrolled over 24 steps of 16 x 32: many tiny tensors alive at once."""
    cell, head = nn.GRUCell(32, 64), nn.Linear(64, 32)
    parameters = [*cell.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-2)
    inputs, targets = torch.randn(24, 16, 32), torch.randn(16, 32)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        state = torch.zeros(16, 64)
        for row in inputs:
            state = cell(row, state)
        loss = F.mse_loss(head(state), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


LOOPS = {
    "conv_net": Loop(conv_net, "3 convolutions, 32 x 3 x 128 x 128, SGD", 1, 2, False),
    "wide_mlp": Loop(wide_mlp, "6 x Linear/LayerNorm/GELU, 16,384 x 512, SGD", 1, 2, False),
    "unet_tiles": Loop(unet_tiles, "U-Net, 6 tile sizes 96 to 224, batch 4, Adam", 1, 2, False),
    "transformer": Loop(transformer, "2 blocks, 6 lengths 96 to 512, batch 4, AdamW", 1, 2, False),
    "small_mlp": Loop(small_mlp, "4 Linear layers, 32 x 64, SGD", 50, 200, True),
    "small_rnn": Loop(small_rnn, "GRU cell over 24 steps of 16 x 32, SGD", 5, 20, True),
}
