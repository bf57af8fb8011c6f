"""Models of other kinds than those that the rules of estimates were written with.

None of them is from a library, and nobody looked at their allocations on a GPU while the rules were
written: they are the blind part of the evidence. Each entry builds a step on ``"cuda"``.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.estimate.own_second import SECOND
from benchmarks.estimate.training import MakeStep, Step, functions, training

_BF16 = torch.bfloat16


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first, last in itertools.pairwise(widths):
        layers += [nn.Linear(first, last), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Attention(nn.Module):
    """Self-attention by PyTorch's kernels, with an optional cache of keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, cache: list[Tensor] | None = None, causal: bool = False) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """A layer of a transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cache: list[Tensor] | None = None, causal: bool = False) -> Tensor:
        x = x + self.attention(self.norms[0](x), cache, causal)
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


def recommender() -> Step:
    """Two towers over bags of items, trained by in-batch negatives with SGD."""
    users, items = (nn.Embedding(200_000, 64, device="cuda") for _ in range(2))
    towers = nn.ModuleList([_mlp(64, 512, 128) for _ in range(2)]).to("cuda")
    seen = torch.randint(0, 200_000, (4096, 20), device="cuda")
    wanted = torch.randint(0, 200_000, (4096,), device="cuda")
    target = torch.arange(4096, device="cuda")
    parameters = [*users.parameters(), *items.parameters(), *towers.parameters()]

    def loss_of() -> Tensor:
        user = functional.normalize(towers[0](users(seen).mean(1)), dim=-1)
        item = functional.normalize(towers[1](items(wanted)), dim=-1)
        return functional.cross_entropy(user @ item.t() / 0.05, target)

    return training(loss_of, torch.optim.SGD(parameters, 0.1, momentum=0.9))


def dlrm() -> Step:
    """Dense features and eight tables, pairwise products, binary cross entropy."""
    tables = nn.ModuleList([nn.Embedding(50_000, 64) for _ in range(8)]).to("cuda")
    bottom, top = _mlp(13, 256, 64).to("cuda"), _mlp(64 + 36, 512, 256, 1).to("cuda")
    dense = torch.randn(8192, 13, device="cuda")
    ids = torch.randint(0, 50_000, (8, 8192), device="cuda")
    clicks = torch.rand(8192, device="cuda")
    rows, columns = torch.tril_indices(9, 9, -1, device="cuda")
    parameters = [*tables.parameters(), *bottom.parameters(), *top.parameters()]

    def loss_of() -> Tensor:
        x = bottom(dense)
        parts = torch.stack([x, *(table(each) for table, each in zip(tables, ids, strict=True))], 1)
        pairs = torch.bmm(parts, parts.transpose(1, 2))[:, rows, columns]
        logits = top(torch.cat([x, pairs], 1)).squeeze(1)
        return functional.binary_cross_entropy_with_logits(logits, clicks)

    return training(loss_of, torch.optim.Adagrad(parameters, 0.01))


class _Residual(nn.Module):
    """A residual block of a U-Net, told of the time step."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(16, first), nn.GroupNorm(16, last)])
        self.convs = nn.ModuleList(
            [nn.Conv2d(first, last, 3, padding=1), nn.Conv2d(last, last, 3, padding=1)]
        )
        self.time, self.skip = nn.Linear(256, last), nn.Conv2d(first, last, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.convs[0](functional.silu(self.norms[0](x))) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.convs[1](functional.silu(self.norms[1](y)))


class UNet(nn.Module):
    """Three levels, attention in the lowest."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 256)
        self.time = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256))
        self.first, self.last = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)
        self.down = nn.ModuleList([_Residual(a, b) for a, b in ((64, 64), (64, 128), (128, 256))])
        self.up = nn.ModuleList([_Residual(a, b) for a, b in ((512, 128), (256, 64), (128, 64))])
        self.attention = Attention(widths[-1], 4)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        angles = at[:, None] * torch.exp(torch.linspace(0, -8, 32, device=x.device))
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        x, kept = self.first(x), []
        for level in self.down:
            x = level(x, time)
            kept.append(x)
            x = functional.avg_pool2d(x, 2)
        flat = x.flatten(2).transpose(1, 2)
        x = x + self.attention(flat).transpose(1, 2).view_as(x)
        for level in self.up:
            x = functional.interpolate(x, scale_factor=2)
            x = level(torch.cat([x, kept.pop()], 1), time)
        return self.last(x)


def diffusion() -> Step:
    """A diffusion U-Net on 64 x 64 images, bf16 autocast, channels-last."""
    model = UNet().to("cuda").to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)

    def loss_of() -> Tensor:
        noise, at = torch.randn_like(images), torch.rand(16, device="cuda")
        share = at[:, None, None, None]
        return functional.mse_loss(model(share * images + (1 - share) * noise, at), noise)

    return training(loss_of, torch.optim.AdamW(model.parameters(), 1e-4), autocast=_BF16, clip=1.0)


class Conformer(nn.Module):
    """A layer of a conformer: half a feed-forward, attention, convolution, half a feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.feeds = nn.ModuleList(
            [
                nn.Sequential(
                    nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(0.1),
                    nn.Linear(4 * width, width),
                )
                for _ in range(2)
            ]
        )  # fmt: skip
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.attention = Attention(width, 4)
        self.first, self.last = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depthwise = nn.Conv1d(width, width, 15, padding=7, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.feeds[0](x)
        x = x + self.attention(self.norms[0](x))
        y = functional.glu(self.first(self.norms[1](x).transpose(1, 2)), 1)
        y = self.last(functional.silu(self.batch_norm(self.depthwise(y))))
        x = x + y.transpose(1, 2)
        return self.norms[2](x + 0.5 * self.feeds[1](x))


def speech() -> Step:
    """Four conformer layers over 800 frames, frame by frame cross entropy."""
    layers = nn.Sequential(nn.Linear(80, 256), *(Conformer(256) for _ in range(4)))
    model = nn.Sequential(layers, nn.Linear(256, 500)).to("cuda")
    frames = torch.randn(16, 800, 80, device="cuda")
    labels = torch.randint(0, 500, (16, 800), device="cuda")

    def loss_of() -> Tensor:
        return functional.cross_entropy(model(frames).flatten(0, 1), labels.flatten())

    return training(loss_of, torch.optim.AdamW(model.parameters(), 1e-4), autocast=_BF16)


class GraphLayer(nn.Module):
    """Messages along fixed edges, summed at their targets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        sent = functional.relu(self.message(torch.cat([x[source], x[target]], 1)))
        got = torch.zeros_like(x).index_add(0, target, sent)
        return self.norm(x + self.update(torch.cat([x, got], 1)))


def graph() -> Step:
    """A graph network of four layers on 20,000 nodes and 200,000 edges, fp32."""
    layers = nn.ModuleList([GraphLayer(128) for _ in range(4)]).to("cuda")
    head = nn.Linear(128, 40, device="cuda")
    nodes = torch.randn(20_000, 128, device="cuda")
    source, target = torch.randint(0, 20_000, (2, 200_000), device="cuda")
    labels = torch.randint(0, 40, (20_000,), device="cuda")

    def loss_of() -> Tensor:
        x = nodes
        for layer in layers:
            x = layer(x, source, target)
        return functional.cross_entropy(head(x), labels)

    parameters = [*layers.parameters(), *head.parameters()]
    return training(loss_of, torch.optim.Adam(parameters, 1e-3))


class Cell(nn.Module):
    """A cell of an LSTM, by products and activation functions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs, self.states = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        keep, take, give, new = (self.inputs(x) + self.states(hidden)).chunk(4, -1)
        cell = cell * keep.sigmoid() + take.sigmoid() * new.tanh()
        return give.sigmoid() * cell.tanh(), cell


def recurrent() -> Step:
    """A language model of two recurrent layers, unrolled over 64 tokens."""
    words = nn.Embedding(10_000, 512, device="cuda")
    cells = nn.ModuleList([Cell(512), Cell(512)]).to("cuda")
    head = nn.Linear(512, 10_000, device="cuda")
    tokens = torch.randint(0, 10_000, (64, 65), device="cuda")

    def loss_of() -> Tensor:
        states = [(torch.zeros(64, 512, device="cuda"),) * 2 for _ in cells]
        outputs = []
        for word in words(tokens[:, :-1]).unbind(1):
            states[0] = cells[0](word, *states[0])
            states[1] = cells[1](states[0][0], *states[1])
            outputs.append(states[1][0])
        logits = head(torch.stack(outputs, 1))
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    parameters = [*words.parameters(), *cells.parameters(), *head.parameters()]
    return training(loss_of, torch.optim.RMSprop(parameters, 1e-3), clip=1.0)


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter."""

    def __init__(self, inner: nn.Linear, rank: int) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.first = nn.Linear(inner.in_features, rank, bias=False)
        self.last = nn.Linear(rank, inner.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.last(self.first(x))


def lora() -> Step:
    """Six layers of a transformer in bf16, of which only adapters are trained."""
    blocks = nn.ModuleList([Block(768, 12) for _ in range(6)]).requires_grad_(False)
    for block in blocks:
        assert isinstance(block, Block)
        block.attention.qkv = Adapted(block.attention.qkv, 16)  # type: ignore[assignment]
        block.attention.out = Adapted(block.attention.out, 16)  # type: ignore[assignment]
    model = blocks.to(_BF16).to("cuda")
    words = nn.Embedding(32_000, 768, dtype=_BF16, device="cuda").requires_grad_(False)
    tokens = torch.randint(0, 32_000, (4, 513), device="cuda")

    def loss_of() -> Tensor:
        x = words(tokens[:, :-1])
        for block in model:
            x = block(x, None, True)
        logits = functional.linear(x, words.weight).float()
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    trained = [each for each in model.parameters() if each.requires_grad]
    return training(loss_of, torch.optim.AdamW(trained, 1e-4, fused=True))


def decode() -> Step:
    """Reads prompts of 512 tokens and makes 16 more, with a cache that grows."""
    blocks = nn.ModuleList([Block(1024, 16) for _ in range(8)]).to(_BF16).to("cuda").eval()
    words = nn.Embedding(32_000, 1024, dtype=_BF16, device="cuda")
    prompts = torch.randint(0, 32_000, (16, 512), device="cuda")

    @torch.no_grad()
    def step() -> Tensor:
        caches: list[list[Tensor]] = [[] for _ in blocks]
        tokens, made = prompts, []
        for number in range(17):
            x = words(tokens)
            for block, cache in zip(blocks, caches, strict=True):
                x = block(x, cache, number == 0)
            tokens = functional.linear(x[:, -1:], words.weight).argmax(-1)
            made.append(tokens)
        return torch.cat(made, 1)

    return step


def vit() -> Step:
    """A vision transformer, bf16 autocast, fused AdamW, checkpointed blocks."""
    patches = nn.Conv2d(3, 384, 16, 16, device="cuda")
    blocks = nn.ModuleList([Block(384, 6) for _ in range(8)]).to("cuda")
    head, place = nn.Linear(384, 1000, device="cuda"), torch.zeros(1, 196, 384, device="cuda")
    images = torch.randn(64, 3, 224, 224, device="cuda")
    labels = torch.randint(0, 1000, (64,), device="cuda")

    def loss_of() -> Tensor:
        x = patches(images).flatten(2).transpose(1, 2) + place
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return functional.cross_entropy(head(x.mean(1)), labels, label_smoothing=0.1)

    parameters = [*patches.parameters(), *blocks.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=True)
    return training(loss_of, optimizer, autocast=_BF16, clip=1.0)


def vae() -> Step:
    """A variational autoencoder of (transposed) convolutions, fp32."""
    encoder = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(64, 128, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128 * 64, 256),
    ).to("cuda")  # fmt: skip
    first = nn.Linear(128, 128 * 64, device="cuda")
    decoder = nn.Sequential(
        nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1),
    ).to("cuda")  # fmt: skip
    images = torch.rand(128, 3, 64, 64, device="cuda")

    def loss_of() -> Tensor:
        mean, spread = encoder(images).chunk(2, 1)
        latent = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        made = decoder(functional.relu(first(latent)).view(-1, 128, 8, 8))
        divergence = -0.5 * (1 + spread - mean.square() - spread.exp()).sum(1).mean()
        return functional.mse_loss(made, images, reduction="sum") / 128 + divergence

    parameters = [*encoder.parameters(), *first.parameters(), *decoder.parameters()]
    return training(loss_of, torch.optim.Adam(parameters, 1e-3))


def accumulated() -> Step:
    """A causal transformer whose gradients accumulate over four micro-batches, then a scaler."""
    blocks = nn.ModuleList([Block(512, 8) for _ in range(6)]).to("cuda")
    words = nn.Embedding(16_000, 512, device="cuda")
    head = nn.Linear(512, 16_000, device="cuda")
    tokens = torch.randint(0, 16_000, (4, 8, 257), device="cuda")
    parameters = [*blocks.parameters(), *words.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)

    def step() -> None:
        for each in tokens:
            with torch.autocast("cuda", torch.float16):
                x = words(each[:, :-1]) * math.sqrt(512)
                for block in blocks:
                    x = block(x, None, True)
                logits = head(x).flatten(0, 1)
                loss = functional.cross_entropy(logits, each[:, 1:].flatten()) / 4
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


OWN: dict[str, MakeStep] = {
    **functions(
        *(recommender, dlrm, diffusion, speech, graph, recurrent, lora, decode, vit, vae),
        accumulated,
    ),
    **SECOND,
}
