"""PyTorch's CUDA caching allocators, simulated: which segments they take from the driver."""

from ._driver import Driver
from ._expandable import ExpandableAllocator
from ._native import NativeAllocator
from ._replay import Peaks, replay
from ._settings import Settings, parse_settings

__all__ = [
    "Driver",
    "ExpandableAllocator",
    "NativeAllocator",
    "Peaks",
    "Settings",
    "parse_settings",
    "replay",
]
