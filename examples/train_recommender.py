"""Learns who clicks on what: embedding tables, a tower for pictures, an MLP.

`python examples/train_recommender.py` trains with vramkit's four drop-ins: the pool, the loader,
Conv+ReLU and embeddings. With `--stock`, PyTorch's parts are in their place; all else is the same.
The clicks are made up: ids follow a power law, and what a click depends on can be learned.
"""

import argparse
import contextlib
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, StackDataset, Subset

import vramkit

# A table for each, with this share of --rows. A click has one id of each field, up to 20 of each
# history; id 0 fills histories up.
FIELDS = {"user": 1.0, "item": 1.0, "query": 1.0, "session": 1.0}
FIELDS |= {"brand": 0.1, "shop": 0.1, "city": 0.01, "hour": 0.01}
HISTORIES = {"seen": 1.0, "bought": 1.0}
LONGEST, WIDTH, DENSE, PICTURES = 20, 64, 13, 4096
RATE, ROW_RATE, ROW_STD = 0.001, 0.01, 0.1


def sizes(fields: dict[str, float], rows: int) -> dict[str, int]:
    return {name: max(int(share * rows), 8) for name, share in fields.items()}


def zipf(rows: int, *shape: int) -> Tensor:
    """Ids from 1 to rows - 1: a power law of exponent 1.05, its ranks scattered over the rows."""
    ranks = ((rows**-0.05 - 1) * torch.rand(shape, dtype=torch.float64) + 1) ** -20
    return ranks.long().clamp(1, rows - 1) * 2654435761 % (rows - 1) + 1


def make_clicks(samples: int, rows: int, side: int = 64) -> StackDataset:
    """Samples of dense features, ids (8), histories (2, 20), a picture (3, side, side), a label."""
    torch.manual_seed(0)
    ids = torch.stack([zipf(size, samples) for size in sizes(FIELDS, rows).values()], dim=1)
    histories = [zipf(size, samples, LONGEST) for size in sizes(HISTORIES, rows).values()]
    lengths = torch.randint(1, LONGEST + 1, (samples, len(HISTORIES), 1))
    histories = torch.stack(histories, dim=1) * (torch.arange(LONGEST) < lengths)
    dense = torch.randn(samples, DENSE)
    pictures = torch.randint(0, 156, (PICTURES, 3, side, side), dtype=torch.uint8)
    beauty = torch.rand(PICTURES)
    pictures[:, 0] += (beauty * 100).byte()[:, None, None]  # the beautiful are redder
    shown = ids[:, list(FIELDS).index("item")] % PICTURES
    score = torch.sin(ids.double() * 12.9898).sum(1) + dense[:, 0] + 4 * (beauty[shown] - 0.5)
    labels = (torch.rand(samples) < torch.sigmoid(score - score.median())).float()
    return StackDataset(
        dense=dense, ids=ids, histories=histories, picture=Subset(pictures, shown), label=labels
    )


class Recommender(nn.Module):
    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 5, padding=2, groups=32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 5, stride=2, padding=2, groups=64), nn.ReLU()),
            *(nn.Conv2d(64, 128, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        inputs = WIDTH * (len(FIELDS) + len(HISTORIES)) + 128 + DENSE
        self.mlp = nn.Sequential(
            *(nn.Linear(inputs, 512), nn.ReLU()), *(nn.Linear(512, 256), nn.ReLU())
        )
        self.click = nn.Linear(256, 1)
        self.tables = tables

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        ids = zip(FIELDS, batch["ids"].unbind(1), strict=True)
        histories = zip(HISTORIES, batch["histories"].unbind(1), strict=True)
        found = self.tables({**dict(ids), **dict(histories)})
        picture = batch["picture"].to(torch.bfloat16, memory_format=torch.channels_last) / 255
        features = [*found.values(), self.tower(picture), batch["dense"]]
        return self.click(self.mlp(torch.cat(features, dim=1))).squeeze(1)


class StockTables(nn.ModuleDict):
    def forward(self, ids: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self[name](each) for name, each in ids.items()}


def stock_tables(rows: int, device: str) -> StockTables:
    tables = StockTables()
    for name, size in sizes(FIELDS, rows).items():
        tables[name] = nn.Embedding(size, WIDTH, sparse=True, device=device)
    for name, size in sizes(HISTORIES, rows).items():
        tables[name] = nn.EmbeddingBag(size, WIDTH, sparse=True, padding_idx=0, device=device)
    for table in tables.values():
        nn.init.normal_(table.weight, std=ROW_STD)
    return tables


def vramkit_tables(
    rows: int, device: str, dtype: torch.dtype
) -> vramkit.nn.SparseEmbeddingCollection:
    options = {"optimizer": "adam", "lr": ROW_RATE, "eps": 1e-8, "init_std": ROW_STD}
    options |= {"device": device, "dtype": dtype}
    tables = {}
    for number, (name, size) in enumerate(sizes(FIELDS, rows).items()):
        tables[name] = vramkit.nn.SparseEmbedding(size, WIDTH, seed=number, **options)
    for number, (name, size) in enumerate(sizes(HISTORIES, rows).items(), start=len(tables)):
        options["padding_idx"] = 0
        tables[name] = vramkit.nn.SparseEmbeddingBag(size, WIDTH, seed=number, **options)
    return vramkit.nn.SparseEmbeddingCollection(tables)


class Training:
    """A model, its optimizers and its batches; ``clicks`` is what ``make_clicks`` returns."""

    def __init__(
        self,
        clicks: StackDataset,
        rows: int,
        batch: int,
        *,
        device: str,
        stock: bool = False,
        workers: int = 8,
        row_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = device
        order = torch.Generator().manual_seed(1)
        choice = {"batch_size": batch, "shuffle": True, "drop_last": True, "generator": order}
        if stock:
            tables = stock_tables(rows, device)
            self.optimizers = [torch.optim.SparseAdam(tables.parameters(), lr=ROW_RATE)]
            choice |= {"num_workers": workers, "persistent_workers": workers > 0}
            self.loader = DataLoader(clicks, pin_memory=device != "cpu", **choice)
        else:
            tables = vramkit_tables(rows, device, row_dtype)
            self.optimizers = []  # the tables update themselves
            self.loader = vramkit.DataLoader(clicks, device=device, **choice)
        torch.manual_seed(2)
        self.model = Recommender(tables).to(device, memory_format=torch.channels_last)
        if not stock:
            vramkit.nn.fuse_conv_relu(self.model.tower)
        parts = (self.model.tower, self.model.mlp, self.model.click)
        parameters = [parameter for part in parts for parameter in part.parameters()]
        self.optimizers.append(torch.optim.Adam(parameters, lr=RATE))
        self.batches = self._endless()

    def _endless(self):
        while True:
            yield from self.loader

    def step(self) -> Tensor:
        """Train on a batch; return its loss."""
        batch = next(self.batches)
        batch = {name: part.to(self.device, non_blocking=True) for name, part in batch.items()}
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            clicks = self.model(batch)
        loss = nn.functional.binary_cross_entropy_with_logits(clicks.float(), batch["label"])
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--vramkit", action="store_true", help="vramkit's drop-ins (the default)")
    which.add_argument("--stock", action="store_true", help="PyTorch's parts in their place")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8192 if on_gpu else 256)
    parser.add_argument("--rows", type=int, default=2_000_000 if on_gpu else 10_000)
    parser.add_argument("--samples", type=int, default=500_000 if on_gpu else 20_000)
    parser.add_argument("--side", type=int, default=64 if on_gpu else 16, help="of the pictures")
    parser.add_argument("--budget", default="40GiB" if on_gpu else "1GiB", help="of the pool")
    parser.add_argument("--bfloat16", action="store_true", help="rows of vramkit's tables")
    chosen = parser.parse_args()

    clicks = make_clicks(chosen.samples, chosen.rows, chosen.side)
    pool = None if chosen.stock else vramkit.MemoryPool(chosen.budget, device=chosen.device)
    with pool or contextlib.nullcontext():
        training = Training(
            *(clicks, chosen.rows, chosen.batch),
            device=chosen.device,
            stock=chosen.stock,
            workers=8 if chosen.device != "cpu" else 0,
            row_dtype=torch.bfloat16 if chosen.bfloat16 else torch.float32,
        )
        losses = []
        for step in range(1, chosen.steps + 1):
            if step == 11:  # the steps before load and choose kernels
                start = time.perf_counter()
            losses.append(training.step())
            if step % 50 == 0 or step == chosen.steps:
                recent = torch.stack(losses[-50:]).mean().item()  # waits for the GPU
                print(f"step {step}: loss {recent:.3f}", flush=True)
    if chosen.steps > 10:
        rate = (chosen.steps - 10) * chosen.batch / (time.perf_counter() - start)
        print(f"{rate:,.0f} samples a second")
    if pool:
        print(f"at most {pool.stats().peak_allocated_bytes / 2**20:,.0f} MiB of the pool in use")
    elif chosen.device != "cpu":
        print(f"{torch.cuda.max_memory_reserved() / 2**20:,.0f} MiB reserved by PyTorch")


if __name__ == "__main__":
    main()
