"""The data loader."""

from vramkit.loader._data_loader import DataLoader
from vramkit.loader._stats import LoaderStats

__all__ = ["DataLoader", "LoaderStats"]
