"""The recommender of the examples with equal initial rows on both sides."""

import torch
from torch import Tensor

from examples.train_recommender import Training


def take_rows(own: Training, stock: Training, dtype: torch.dtype = torch.float32) -> None:
    """Let vramkit's tables begin with the initial rows of PyTorch's."""
    for name, plain in stock.model.tables.items():
        table = own.model.tables.tables[name]
        options = {"optimizer": "adam", "lr": table.lr, "eps": 1e-8, "dtype": dtype}
        own.model.tables.tables[name] = type(table).from_embedding(plain, **options)


def losses(training: Training, steps: int) -> Tensor:
    """The losses of some steps."""
    return torch.stack([training.step() for _ in range(steps)])
