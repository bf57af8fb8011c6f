"""Tokenised text in a memory map: documents that are padded to a batch, and blocks of one length.

Token ids are stored as ``uint16`` and become the ``int64`` that embeddings take.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from benchmarks.loader.datasets import LENGTH

VOCABULARY = 50_000
PADDING = 0
IGNORED_LABEL = -100
SHORTEST, LONGEST = 16, 1024


class TokenFile:
    """Random token ids in a file, mapped by each process that reads them."""

    def __init__(self, count: int, folder: Path | None = None) -> None:
        folder = folder or Path(tempfile.gettempdir())
        self.count = count
        self._path = folder / f"vramkit-bench-tokens-{count}.npy"
        if not self._path.exists():
            tokens = np.random.default_rng(0).integers(1, VOCABULARY, count, np.uint16)
            np.save(self._path, tokens)
        self._tokens: Any = None

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return the ids from ``begin`` to ``end``."""
        if self._tokens is None:
            self._tokens = np.load(self._path, mmap_mode="r")
        return torch.from_numpy(self._tokens[begin:end].astype(np.int64))


class Documents(Dataset[Any]):
    """Documents of 16 to 1024 tokens, most of them short; ``pad`` makes batches of them."""

    def __init__(self, tokens: TokenFile) -> None:
        self.tokens = tokens
        lengths = np.random.default_rng(1).lognormal(5.5, 0.8, tokens.count // 350)
        ends = np.cumsum(lengths.astype(np.int64).clip(SHORTEST, LONGEST))
        self.ends = ends[ends <= tokens.count]

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        number = index % len(self.ends)
        return self.tokens.read(self.ends[number - 1] if number else 0, self.ends[number])


class Blocks(Dataset[Any]):
    """Blocks of one length, and the same shifted by one token as targets."""

    def __init__(self, tokens: TokenFile, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        begin = index * self.length % (self.tokens.count - self.length)
        read = self.tokens.read(begin, begin + self.length + 1)
        return read[:-1], read[1:]


def pad(documents: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pad documents to the longest of them, with their mask and labels."""
    ids = pad_sequence(documents, batch_first=True, padding_value=PADDING)
    mask = (ids != PADDING).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, IGNORED_LABEL),
    }
