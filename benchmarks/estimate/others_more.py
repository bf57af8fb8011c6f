"""Steps of others: graphs, sequences, physics, point clouds, tables and reinforcement learning.

Sizes, types, optimizers and the order of operations belong to the recorded figures. Each entry
builds a step on ``"cuda"``.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.estimate.training import Step, functions, training


class _TwoLayers(nn.Module):
    """Two layers of a graph network."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.last(functional.elu(self.first(x, edges)), edges)


def gat() -> Step:
    """Graph attention of torch_geometric, whose loops are dropped by a mask of data, fp32."""
    from torch_geometric.nn import GATConv

    layers = (GATConv(128, 32, heads=8, dropout=0.2), GATConv(256, 40, heads=1))
    model = _TwoLayers(*layers).to("cuda")
    nodes = torch.randn(10000, 128, device="cuda")
    edges = torch.randint(0, 10000, (2, 80000), device="cuda")
    labels = torch.randint(0, 40, (10000,), device="cuda")

    def loss_of() -> Tensor:
        return functional.cross_entropy(model(nodes, edges), labels)

    return training(loss_of, torch.optim.Adam(model.parameters(), 5e-3, weight_decay=5e-4))


def sage() -> Step:
    """GraphSAGE and a GCN of torch_geometric, whose loops are dropped by a mask of data, fp32."""
    from torch_geometric.nn import GCNConv, SAGEConv, global_mean_pool

    first = SAGEConv(64, 128).to("cuda")
    second = GCNConv(128, 128).to("cuda")
    head = nn.Linear(128, 5).to("cuda")
    nodes = torch.randn(8000, 64, device="cuda")
    edges = torch.randint(0, 8000, (2, 60000), device="cuda")
    graphs = torch.arange(8000, device="cuda") // 100
    labels = torch.randint(0, 5, (80,), device="cuda")

    def loss_of() -> Tensor:
        return functional.cross_entropy(
            head(
                global_mean_pool(second(first(nodes, edges).relu(), edges).relu(), graphs, size=80)
            ),
            labels,
        )

    parameters = nn.ModuleList([first, second, head]).parameters()
    return training(loss_of, torch.optim.Adam(parameters, 1e-2))


def seq2seq() -> Step:
    """PyTorch's transformer of three and three layers, fp32, AMSGrad with a schedule, clipped."""
    body = nn.Transformer(512, 8, 3, 3, 2048, batch_first=True).to("cuda")
    words = nn.Embedding(10000, 512).to("cuda")
    head = nn.Linear(512, 10000).to("cuda")
    model = nn.ModuleList([body, words, head])
    source = torch.randint(0, 10000, (32, 100), device="cuda")
    target = torch.randint(0, 10000, (32, 101), device="cuda")
    mask = nn.Transformer.generate_square_subsequent_mask(100, device=torch.device("cuda"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, betas=(0.9, 0.98), amsgrad=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: min(1, (count + 1) / 100))

    def loss_of() -> Tensor:
        return functional.cross_entropy(
            head(
                body(words(source), words(target[:, :-1]), tgt_mask=mask, tgt_is_causal=True)
            ).transpose(1, 2),
            target[:, 1:],
            label_smoothing=0.1,
        )

    train = training(loss_of, optimizer, clip=0.5)

    def step() -> None:
        train()
        schedule.step()

    return step


def lstm() -> Step:
    """Two layers of an LSTM in both directions by cuDNN, fp32, clipped."""
    layers = nn.LSTM(256, 512, 2, batch_first=True, bidirectional=True, dropout=0.3).to("cuda")
    head = nn.Linear(1024, 1000).to("cuda")
    frames = torch.randn(32, 100, 256, device="cuda")
    labels = torch.randint(0, 1000, (32, 100), device="cuda")

    def loss_of() -> Tensor:
        return functional.cross_entropy(head(layers(frames)[0]).flatten(0, 1), labels.flatten())

    parameters = nn.ModuleList([layers, head]).parameters()
    return training(loss_of, torch.optim.Adam(parameters, 1e-3), clip=1.0)


def gru_attention() -> Step:
    """A translator of a GRU and a GRU cell that attends to it, word by word, fp32, clipped."""
    words = nn.Embedding(8000, 256).to("cuda")
    encoder = nn.GRU(256, 256, bidirectional=True, batch_first=True).to("cuda")
    cell = nn.GRUCell(768, 256).to("cuda")
    attends = nn.Linear(768, 1).to("cuda")
    head = nn.Linear(256, 8000).to("cuda")
    source = torch.randint(0, 8000, (64, 40), device="cuda")
    target = torch.randint(0, 8000, (64, 25), device="cuda")

    def loss_of() -> Tensor:
        states, last = encoder(words(source))
        now = last[0]
        loss: Any = 0
        for at in range(24):
            shares = attends(torch.cat([states, now[:, None].expand(-1, 40, -1)], -1)).softmax(1)
            context = (shares * states).sum(1)
            now = cell(torch.cat([words(target[:, at]), context], -1), now)
            loss = loss + functional.cross_entropy(head(now), target[:, at + 1])
        return loss

    parameters = nn.ModuleList([words, encoder, cell, attends, head]).parameters()
    return training(loss_of, torch.optim.Adam(parameters, 1e-3), clip=1.0)


def nerf() -> Step:
    """A radiance field: 64 points on each of 2,048 rays, fp32, NAdam."""
    hidden = [layer for _ in range(6) for layer in (nn.Linear(256, 256), nn.ReLU())]
    model = nn.Sequential(nn.Linear(63, 256), nn.ReLU(), *hidden, nn.Linear(256, 4)).to("cuda")
    origins = torch.rand(2048, 3, device="cuda")
    ways = functional.normalize(torch.randn(2048, 3, device="cuda"), dim=-1)
    colours = torch.rand(2048, 3, device="cuda")
    depths = torch.linspace(0.1, 4, 64, device="cuda")

    def loss_of() -> Tensor:
        at = depths + torch.rand(2048, 64, device="cuda") * 0.06
        points = origins[:, None] + ways[:, None] * at[..., None]
        features = torch.cat(
            [points]
            + [wave(points * 2**power) for power in range(10) for wave in (torch.sin, torch.cos)],
            -1,
        )
        raw = model(features)
        density = functional.softplus(raw[..., 3])
        colour = torch.sigmoid(raw[..., :3])
        opacity = 1 - torch.exp(-density * 0.06)
        weights = (
            opacity
            * torch.cumprod(
                torch.cat([torch.ones_like(opacity[:, :1]), 1 - opacity + 1e-10], -1), -1
            )[:, :-1]
        )
        return ((weights[..., None] * colour).sum(1) - colours).square().mean()

    return training(loss_of, torch.optim.NAdam(model.parameters(), 1e-3))


def pinn() -> Step:
    """A network that learns a differential equation: second derivatives in the loss, fp32."""
    model = nn.Sequential(
        nn.Linear(2, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(),
        nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1),
    ).to("cuda")  # fmt: skip

    def loss_of() -> Tensor:
        x = torch.rand(50000, 2, device="cuda", requires_grad=True)
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
        return (slope[:, 1] - 0.1 * bend[:, 0]).square().mean() + u.square().mean()

    return training(loss_of, torch.optim.Adam(model.parameters(), 1e-3))


class _Spectral(nn.Module):
    """A layer of a Fourier neural operator: low frequencies by complex weights, and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64, 16, 16, dtype=torch.cfloat) * 0.02)
        self.beside = nn.Conv2d(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(x)
        out = torch.zeros_like(waves)
        out[..., :16, :16] = torch.einsum("bixy,ioxy->boxy", waves[..., :16, :16], self.weight)
        return functional.gelu(torch.fft.irfft2(out, s=x.shape[-2:]) + self.beside(x))


def fno() -> Step:
    """A Fourier neural operator of three layers on grids of 128 x 128, fp32."""
    layers = (_Spectral(), _Spectral(), _Spectral())
    model = nn.Sequential(nn.Conv2d(1, 64, 1), *layers, nn.Conv2d(64, 1, 1)).to("cuda")
    before = torch.randn(16, 1, 128, 128, device="cuda")
    after = torch.randn(16, 1, 128, 128, device="cuda")

    def loss_of() -> Tensor:
        return functional.mse_loss(model(before), after)

    return training(loss_of, torch.optim.Adam(model.parameters(), 1e-3))


def _pointwise(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first, last in itertools.pairwise(widths):
        layers += [nn.Conv2d(first, last, 1), nn.BatchNorm2d(last), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def _edges(features: Tensor) -> Tensor:
    """Each point beside what its 16 nearest points differ by."""
    batch, width, count = features.shape
    distances = torch.cdist(features.transpose(1, 2), features.transpose(1, 2))
    nearest = distances.topk(16, dim=-1, largest=False).indices
    near = torch.gather(
        features.unsqueeze(-1).expand(batch, width, count, 16),
        2,
        nearest.unsqueeze(1).expand(batch, width, count, 16),
    )
    itself = features.unsqueeze(-1).expand_as(near)
    return torch.cat([itself, near - itself], 1)


def pointnet() -> Step:
    """A classifier of clouds of 1,024 points by their nearest neighbours, fp32, SGD."""
    first = _pointwise(6, 64, 64).to("cuda")
    second = _pointwise(128, 128).to("cuda")
    head = nn.Linear(128, 40).to("cuda")
    points = torch.randn(16, 3, 1024, device="cuda")
    labels = torch.randint(0, 40, (16,), device="cuda")

    def loss_of() -> Tensor:
        features = first(_edges(points)).amax(-1)
        features = second(_edges(features)).amax(-1)
        return functional.cross_entropy(head(features.max(-1).values), labels)

    parameters = nn.ModuleList([first, second, head]).parameters()
    return training(loss_of, torch.optim.SGD(parameters, 0.1, momentum=0.9))


def muon() -> Step:
    """Four linear layers, fp32, PyTorch's Muon."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(1024, 1024, bias=False), nn.GELU())]
    model = nn.Sequential(*layers).to("cuda")
    x = torch.randn(256, 1024, device="cuda")

    def loss_of() -> Tensor:
        return model(x).square().mean()

    return training(loss_of, torch.optim.Muon(model.parameters(), 1e-3))


def deepfm() -> Step:
    """A factorization machine beside an MLP, with embeddings and a bag, fp32, Adam."""
    offsets = torch.arange(10, device="cuda") * 10000
    vectors = nn.Embedding(100000, 16).to("cuda")
    weights = nn.Embedding(100000, 1).to("cuda")
    mlp = nn.Sequential(
        nn.Linear(160, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(400, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Linear(400, 1),
    ).to("cuda")  # fmt: skip
    bag = nn.EmbeddingBag(50000, 16, mode="mean").to("cuda")
    ids = torch.randint(0, 10000, (4096, 10), device="cuda")
    seen = torch.randint(0, 50000, (20480,), device="cuda")
    starts = torch.arange(0, 20480, 5, device="cuda")
    clicks = torch.rand(4096, device="cuda").round()

    def loss_of() -> Tensor:
        rows = ids + offsets
        v = vectors(rows)
        pairs = 0.5 * (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1)
        return functional.binary_cross_entropy_with_logits(
            weights(rows).sum((1, 2)) + pairs + mlp(v.flatten(1))[:, 0] + bag(seen, starts).sum(1),
            clicks,
        )

    parameters = nn.ModuleList([vectors, weights, mlp, bag]).parameters()
    return training(loss_of, torch.optim.Adam(parameters, 1e-3, weight_decay=1e-5))


def wavenet() -> Step:
    """A WaveNet of eight dilated convolutions on half a second of sound, fp32, Adam."""
    gates = nn.ModuleList([nn.Conv1d(64, 128, 2, dilation=2**level) for level in range(8)])
    gates = gates.to("cuda")
    mixes = nn.ModuleList([nn.Conv1d(64, 64, 1) for _ in range(8)]).to("cuda")
    first = nn.Conv1d(1, 64, 1).to("cuda")
    head = nn.Sequential(nn.ReLU(), nn.Conv1d(64, 256, 1)).to("cuda")
    sound = torch.randn(8, 1, 8000, device="cuda")
    labels = torch.randint(0, 256, (8, 8000), device="cuda")

    def loss_of() -> Tensor:
        x = first(sound)
        skipped: Any = 0
        for level in range(8):
            new, gate = gates[level](functional.pad(x, (2**level, 0))).chunk(2, 1)
            mixed = mixes[level](torch.tanh(new) * torch.sigmoid(gate))
            x = x + mixed
            skipped = skipped + mixed
        return functional.cross_entropy(head(skipped), labels)

    parameters = nn.ModuleList([gates, mixes, first, head]).parameters()
    return training(loss_of, torch.optim.Adam(parameters, 1e-3))


def _atari() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(),
    )  # fmt: skip


def ppo() -> Step:
    """Proximal policy optimization on 1,024 frames, in four parts, fp32, clipped."""
    body = _atari().to("cuda")
    actor = nn.Linear(512, 18).to("cuda")
    critic = nn.Linear(512, 1).to("cuda")
    model = nn.ModuleList([body, actor, critic])
    optimizer = torch.optim.Adam(model.parameters(), 2.5e-4, eps=1e-5)
    frames = torch.randint(0, 255, (1024, 4, 84, 84), device="cuda", dtype=torch.uint8)

    def step() -> None:
        with torch.no_grad():
            states = body(frames / 255.0)
            policy = torch.distributions.Categorical(logits=actor(states))
            actions = policy.sample()
            before = policy.log_prob(actions)
            values = critic(states)[:, 0]
        gains = torch.randn(1024, device="cuda")
        returns = gains + values
        order = torch.randperm(1024, device="cuda")
        for part in order.split(256):
            states = body(frames[part] / 255.0)
            policy = torch.distributions.Categorical(logits=actor(states))
            ratio = (policy.log_prob(actions[part]) - before[part]).exp()
            loss = (
                torch.max(-gains[part] * ratio, -gains[part] * ratio.clamp(0.8, 1.2)).mean()
                - 0.01 * policy.entropy().mean()
                + 0.5 * functional.mse_loss(critic(states)[:, 0], returns[part])
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()

    return step


def _dense(first: int, last: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(first, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, last)
    ).to("cuda")


class _SoftActorCritic:
    """The networks, optimizers and data of soft actor-critic."""

    def __init__(self) -> None:
        self.actor = _dense(17, 12)
        self.critics = (_dense(23, 1), _dense(23, 1))
        self.targets = (_dense(23, 1), _dense(23, 1))
        self.heat = torch.zeros(1, device="cuda", requires_grad=True)
        judged = [each for critic in self.critics for each in critic.parameters()]
        self.of_critics = torch.optim.Adam(judged, 3e-4)
        self.of_actor = torch.optim.Adam(self.actor.parameters(), 3e-4)
        self.of_heat = torch.optim.Adam([self.heat], 3e-4)
        self.states = torch.randn(4096, 17, device="cuda")
        self.actions = torch.randn(4096, 6, device="cuda")
        self.rewards = torch.randn(4096, 1, device="cuda")
        self.following = torch.randn(4096, 17, device="cuda")

    def act(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions; returns the logarithm of their density, too."""
        mean, spread = self.actor(states).chunk(2, -1)
        normal = torch.distributions.Normal(mean, spread.clamp(-5, 2).exp())
        drawn = normal.rsample()
        actions = drawn.tanh()
        return actions, (normal.log_prob(drawn) - torch.log(1 - actions.pow(2) + 1e-6)).sum(
            -1, keepdim=True
        )

    def follow(self) -> None:
        """Move the targets a little towards the critics."""
        with torch.no_grad():
            for target, critic in zip(self.targets, self.critics, strict=True):
                for x, y in zip(target.parameters(), critic.parameters(), strict=True):
                    x.lerp_(y, 0.005)


def sac() -> Step:
    """Soft actor-critic on 4,096 transitions: three optimizers, targets that follow, fp32."""
    made = _SoftActorCritic()
    mse = functional.mse_loss

    def step() -> None:
        with torch.no_grad():
            actions, density = made.act(made.following)
            beside = torch.cat([made.following, actions], -1)
            wanted = made.rewards + 0.99 * (
                torch.min(made.targets[0](beside), made.targets[1](beside))
                - made.heat.exp() * density
            )
        known = torch.cat([made.states, made.actions], -1)
        judged = mse(made.critics[0](known), wanted) + mse(made.critics[1](known), wanted)
        made.of_critics.zero_grad()
        judged.backward()
        made.of_critics.step()
        actions, density = made.act(made.states)
        chosen = torch.cat([made.states, actions], -1)
        loss = (
            made.heat.exp().detach() * density
            - torch.min(made.critics[0](chosen), made.critics[1](chosen))
        ).mean()
        made.of_actor.zero_grad()
        loss.backward()
        made.of_actor.step()
        warmth = -(made.heat * (density.detach() - 6)).mean()
        made.of_heat.zero_grad()
        warmth.backward()
        made.of_heat.step()
        made.follow()

    return step


MORE = functions(
    *(gat, sage, seq2seq, lstm, gru_attention, nerf, pinn, fno, pointnet, muon, deepfm, wavenet),
    *(ppo, sac),
)
