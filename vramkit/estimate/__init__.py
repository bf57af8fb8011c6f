"""Estimates the GPU memory of a training or inference step without a GPU."""

from vramkit.estimate._targets import Target, find_target, targets

__all__ = ["Target", "find_target", "targets"]
