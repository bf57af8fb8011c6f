"""What a table holds and how it is used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableStats:
    """What an embedding module holds, and how it has been used.

    Attributes:
        rows_in_use: Rows that have memory.
        bytes: All memory of the module: rows, optimizer state, index and counters. For a module
            without a fused optimizer, its ``weight``.
        device_bytes: Of these, the bytes on a CUDA device.
        host_bytes: The others, in host memory; all of a module on the CPU.
        capacity: The most rows that ``num_embeddings`` and ``budget`` allow; None without a limit.
        hit_rate: The share of looked-up ids whose row was there already; in training, each distinct
            id of a batch counts once. With ``placement="cached"`` on a CUDA device, a row in host
            memory counts as not there. None before the first lookup, and without a fused optimizer.
        evictions: Rows given up for others since the module was built or loaded.
        lost_gradients: Looked-up ids whose gradient came when their row had been given up: a later
            lookup evicted it before the update, which skipped it.

    Example:
        >>> import vramkit
        >>> table = vramkit.nn.SparseEmbedding(None, 4, optimizer="sgd")
        >>> table.stats().rows_in_use
        0
    """

    rows_in_use: int
    bytes: int
    device_bytes: int
    host_bytes: int
    capacity: int | None
    hit_rate: float | None
    evictions: int
    lost_gradients: int
