"""Modules that keep less memory between forward and backward, or take less time."""

from vramkit.nn import functional
from vramkit.nn._modules import ConvReLU1d, ConvReLU2d, ConvReLU3d

__all__ = ["ConvReLU1d", "ConvReLU2d", "ConvReLU3d", "functional"]
