"""The memory pool."""

from vramkit.pool._memory_pool import MemoryPool
from vramkit.pool._report import PoolBlock, PoolStats, SizeClassStats

__all__ = ["MemoryPool", "PoolBlock", "PoolStats", "SizeClassStats"]
