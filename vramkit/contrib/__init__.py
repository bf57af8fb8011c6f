"""The interfaces of other libraries over vramkit's operators."""

from vramkit.contrib import conv_bias_relu

__all__ = ["conv_bias_relu"]
