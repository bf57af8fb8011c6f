"""A dictionary that behaves as a table with a fused optimizer must."""

from __future__ import annotations

import torch
from torch import Tensor


class DictTable:
    """Rows by id, updated by SGD one id at a time; evicts the least recently used."""

    def __init__(self, lr: float, capacity: int | None = None) -> None:
        self.rows: dict[int, Tensor] = {}
        self.used: dict[int, int] = {}
        self.clock = 0
        self.lr, self.capacity = lr, capacity

    def train(self, ids: list[int], initial: Tensor, grads: Tensor) -> Tensor:
        """Return the rows before the update by ``grads``; ``initial`` has rows for fresh ids."""
        self.clock += 1
        distinct = set(ids)
        for key in distinct & set(self.rows):
            self.used[key] = self.clock
        fresh = distinct - set(self.rows)
        while self.capacity is not None and len(self.rows) + len(fresh) > self.capacity:
            victim = min(self.rows, key=lambda key: self.used[key])
            del self.rows[victim], self.used[victim]
        for position, key in enumerate(ids):
            if key in fresh and key not in self.rows:
                self.rows[key] = initial[position].clone()
                self.used[key] = self.clock
        output = torch.stack([self.rows[key] for key in ids])
        for key, grad in zip(ids, grads, strict=True):
            self.rows[key] = self.rows[key] - self.lr * grad
        return output
