"""A second blind set: kinds of models that neither ``models.py`` nor ``own.py`` has.

They were written after the rules of estimates and before anyone measured them. Each entry builds a
step on ``"cuda"``; some log their loss, as most training loops do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.estimate.training import MakeStep, Step, functions

_BF16 = torch.bfloat16


def _logging(
    loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, *, autocast: bool = False
) -> Step:
    """One step that also keeps a running mean of its loss."""
    seen: list[float] = []

    def step() -> str:
        with torch.autocast("cuda", _BF16, enabled=autocast):
            loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
        return f"loss {seen[-1]:.4f}, mean {sum(seen) / len(seen):.4f}"

    return step


class Selective(nn.Module):
    """A selective state-space layer, whose recurrence is computed token by token."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.norm, self.states = nn.RMSNorm(width), states
        self.first, self.last = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.mix = nn.Conv1d(2 * width, 2 * width, 4, padding=3, groups=2 * width)
        self.chosen = nn.Linear(2 * width, 2 * states + 1)
        self.rate = nn.Parameter(torch.rand(2 * width, states))
        self.step = nn.Parameter(torch.zeros(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        inner, gate = self.first(self.norm(x)).chunk(2, -1)
        inner = self.mix(inner.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        inner = functional.silu(inner)
        enters, leaves, pace = self.chosen(inner).split((self.states, self.states, 1), -1)
        pace = functional.softplus(pace + self.step)
        decay = torch.exp(-pace[..., None] * self.rate.exp())
        added = (pace * inner)[..., None] * enters[:, :, None]
        state, outputs = torch.zeros_like(added[:, 0]), []
        for now in range(x.shape[1]):
            state = decay[:, now] * state + added[:, now]
            outputs.append((state * leaves[:, now, None]).sum(-1))
        return x + self.last(torch.stack(outputs, 1) * functional.silu(gate))


def state_space() -> Step:
    """A language model of two selective state-space layers, bf16 autocast."""
    words = nn.Embedding(8_000, 256, device="cuda")
    layers = nn.Sequential(Selective(256, 8), Selective(256, 8)).to("cuda")
    tokens = torch.randint(0, 8_000, (8, 97), device="cuda")

    def loss_of() -> Tensor:
        logits = functional.linear(layers(words(tokens[:, :-1])), words.weight)
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    parameters = [*words.parameters(), *layers.parameters()]
    return _logging(loss_of, torch.optim.AdamW(parameters, 1e-3), autocast=True)


def translator() -> Step:
    """Convolutions over a spectrogram, an encoder, and a decoder with cross-attention, fp32."""
    front = nn.Sequential(
        nn.Conv1d(80, 384, 3, padding=1), nn.GELU(), nn.Conv1d(384, 384, 3, 2, 1), nn.GELU()
    ).to("cuda")
    options: dict[str, Any] = {"dropout": 0.1, "batch_first": True, "norm_first": True}
    body = nn.Transformer(384, 6, 3, 3, 1536, **options).to("cuda")
    words = nn.Embedding(12_000, 384, device="cuda")
    sound = torch.randn(8, 80, 1000, device="cuda")
    tokens = torch.randint(0, 12_000, (8, 65), device="cuda")
    mask = nn.Transformer.generate_square_subsequent_mask(64, device="cuda")

    def loss_of() -> Tensor:
        heard = front(sound).transpose(1, 2)
        out = body(heard, words(tokens[:, :-1]), tgt_mask=mask, tgt_is_causal=True)
        logits = functional.linear(out, words.weight)
        return functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), label_smoothing=0.1
        )

    parameters = [*front.parameters(), *body.parameters(), *words.parameters()]
    return _logging(loss_of, torch.optim.NAdam(parameters, 1e-4))


class Experts(nn.Module):
    """Experts that choose their tokens: each takes the same number, and adds what it computes."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 2 * width) / math.sqrt(width))
        self.down = nn.Parameter(torch.randn(experts, 2 * width, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        experts = self.router.out_features
        shares = self.router(flat).float().softmax(-1)
        weights, chosen = shares.t().topk(2 * len(flat) // experts, dim=-1)
        taken = flat.index_select(0, chosen.flatten()).view(*chosen.shape, -1)
        made = torch.bmm(functional.silu(torch.bmm(taken, self.up)), self.down)
        made = (made * weights[..., None].to(made.dtype)).flatten(0, 1)
        return x + torch.zeros_like(flat).index_add(0, chosen.flatten(), made).view_as(x)


def mixture() -> Step:
    """Four layers of experts that choose their tokens, bf16."""
    layers = nn.Sequential(*(Experts(512, 8) for _ in range(4))).to(_BF16).to("cuda")
    head = nn.Linear(512, 1000, dtype=_BF16, device="cuda")
    x = torch.randn(8, 512, 512, dtype=_BF16, device="cuda")
    labels = torch.randint(0, 1000, (8 * 512,), device="cuda")

    def loss_of() -> Tensor:
        return functional.cross_entropy(head(layers(x)).flatten(0, 1).float(), labels)

    parameters = [*layers.parameters(), *head.parameters()]
    return _logging(loss_of, torch.optim.AdamW(parameters, 1e-4, fused=True))


def cells() -> Step:
    """Fused GRU cells in both directions over 48 frames, fp32."""
    forward, backward = (nn.GRUCell(256, 384, device="cuda") for _ in range(2))
    head = nn.Linear(768, 200, device="cuda")
    frames = torch.randn(48, 128, 256, device="cuda")
    labels = torch.randint(0, 200, (48 * 128,), device="cuda")

    def loss_of() -> Tensor:
        sides = []
        for cell, order in ((forward, range(48)), (backward, range(47, -1, -1))):
            hidden, kept = torch.zeros(128, 384, device="cuda"), {}
            for at in order:
                hidden = kept[at] = cell(frames[at], hidden)
            sides.append(torch.stack([kept[at] for at in range(48)]))
        return functional.cross_entropy(head(torch.cat(sides, -1)).flatten(0, 1), labels)

    parameters = [*forward.parameters(), *backward.parameters(), *head.parameters()]
    return _logging(loss_of, torch.optim.Adamax(parameters, 1e-3))


def mixer() -> Step:
    """An MLP-Mixer whose weights are averaged, fp16 with a scaler."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(384), nn.LayerNorm(384)])
            self.tokens = nn.Sequential(nn.Linear(196, 192), nn.GELU(), nn.Linear(192, 196))
            self.widths = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
            return x + self.widths(self.norms[1](x))

    patches = nn.Linear(3 * 256, 384)
    model = nn.Sequential(patches, *(Mixed() for _ in range(6)), nn.Linear(384, 100)).to("cuda")
    averages = [each.detach().clone() for each in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    images = torch.randn(64, 196, 3 * 256, device="cuda")
    labels = torch.randint(0, 100, (64,), device="cuda")

    def step() -> str:
        with torch.autocast("cuda", torch.float16):
            logits = model(images).mean(1)
            loss = functional.cross_entropy(logits, labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(averages, list(model.parameters()), 0.01)
        right = (logits.argmax(1) == labels).sum().item()
        return f"{loss.item():.3f} {norm:.2f} {right / len(labels):.1%}"

    return step


def adversarial() -> Step:
    """A generator and a discriminator of convolutions with batch norm, two optimizers, fp32."""
    generator = nn.Sequential(
        nn.ConvTranspose2d(64, 256, 4, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
        nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh(),
    ).to("cuda")  # fmt: skip
    critic = nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(64, 128, 4, 2, 1),
        nn.BatchNorm2d(128), nn.LeakyReLU(0.2), nn.Conv2d(128, 1, 8), nn.Flatten(),
    ).to("cuda")  # fmt: skip
    makes, judges = (
        torch.optim.Adam(each.parameters(), 2e-4, betas=(0.5, 0.999))
        for each in (generator, critic)
    )
    images = torch.randn(128, 3, 32, 32, device="cuda")
    yes, no = torch.ones(128, 1, device="cuda"), torch.zeros(128, 1, device="cuda")
    judged = functional.binary_cross_entropy_with_logits

    def step() -> str:
        made = generator(torch.randn(128, 64, 1, 1, device="cuda"))
        judges.zero_grad()
        loss = judged(critic(images), yes) + judged(critic(made.detach()), no)
        loss.backward()
        judges.step()
        makes.zero_grad()
        fooled = judged(critic(made), yes)
        fooled.backward()
        makes.step()
        return f"{loss.item():.3f} {fooled.item():.3f}"

    return step


SECOND: dict[str, MakeStep] = functions(state_space, translator, mixture, cells, mixer, adversarial)
