"""Modules that keep less memory between forward and backward, or take less time."""

from vramkit.nn import functional
from vramkit.nn._embedding._bag import SparseEmbeddingBag
from vramkit.nn._embedding._collection import SparseEmbeddingCollection
from vramkit.nn._embedding._embedding import SparseEmbedding
from vramkit.nn._embedding._stats import TableStats
from vramkit.nn._explain import Explanation, explain
from vramkit.nn._fuse import fuse_conv_relu, fusion_report
from vramkit.nn._modules import ConvReLU1d, ConvReLU2d, ConvReLU3d
from vramkit.nn._report import FusionEntry, FusionReport
from vramkit.nn._selection import set_kernel_choice

__all__ = [
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "Explanation",
    "FusionEntry",
    "FusionReport",
    "SparseEmbedding",
    "SparseEmbeddingBag",
    "SparseEmbeddingCollection",
    "TableStats",
    "explain",
    "functional",
    "fuse_conv_relu",
    "fusion_report",
    "set_kernel_choice",
]
