"""Normalisations: the buffers in which their kernels gather partial sums."""

from __future__ import annotations

import torch

from vramkit.estimate._ops._plan import (
    Call,
    Drop,
    Give,
    Plan,
    Step,
    Take,
    is_channels_last,
    scratch,
    size_of,
)
from vramkit.estimate._ops._reduce import last_power, staging_of

# flexible_launch_configs() of ATen/native/cuda/Normalization.cuh.
_THREADS = 512
_WARP = 32
_ELEMENTS = 16
_MOST_ROWS = 128
_LEAST_ROWS = 8

# Rows from which layer norm's weight gradient is summed in two passes, rows of one block, and the
# number of blocks that is not reached; the last two as recorded on an H100.
_TWO_PASSES_ROWS = 64 * 1024
_BLOCK_ROWS = 32
_MOST_BLOCKS = 8192


def _grid(reduced: int, channels: int) -> tuple[int, int]:
    width = min(last_power(channels), _WARP)
    height = min(last_power(-(-reduced // _ELEMENTS)), _THREADS // width)
    if width * height != _THREADS:
        width = min(last_power(channels), _THREADS // height)
    rows = min(-(-reduced // (height * _ELEMENTS)), _MOST_ROWS)
    return -(-channels // width), 1 if rows < _LEAST_ROWS else rows


def _is_nhwc(x: torch.Tensor) -> bool:
    return is_channels_last(x) or (x.is_contiguous() and x.dim() > 1 and x.stride(1) == 1)


def _batch_norm(call: Call) -> Plan:
    x, training = call.args[0], call.argument(5, "training")
    if not training or not _is_nhwc(x):
        return []
    channels = int(x.shape[1])
    columns, rows = _grid(x.numel() // channels, channels)
    return scratch(4 * channels * rows * 4, 4 * columns) if rows > 1 else []


def _batch_norm_backward(call: Call) -> Plan:
    x = call.args[1]
    if not _is_nhwc(x):
        return []
    channels = int(x.shape[1])
    columns, rows = _grid(x.numel() // channels, channels)
    weights = [Give(place) for place in (1, 2) if call.outputs[place] is not None]
    partial = scratch(2 * channels * rows * 4, 4 * columns) if rows > 1 else []
    return [Take(4 * channels), Take(4 * channels), *weights, *partial, Give(0), Drop(2)]


def _layer_norm(call: Call) -> Plan:
    """The kernel takes contiguous tensors; others are copied first."""
    given = [Give(place) for place in range(3)]
    copies = [Take(size_of(x)) for x in call.args[:1] if not x.is_contiguous()]
    return [*copies, *given, Drop(len(copies))] if copies else given


def _layer_norm_backward(call: Call) -> Plan:
    copies = [Take(size_of(x)) for x in call.args[:2] if not x.is_contiguous()]
    inner = _layer_norm_sums(call)
    return [*copies, *inner, Drop(len(copies))] if copies else inner


def _layer_norm_sums(call: Call) -> Plan:
    x, shape = call.args[1], call.args[2]
    width = 1
    for size in shape:
        width *= int(size)
    rows = x.numel() // width
    few_columns = width // _WARP < call.target.multi_processors // 2
    given = _all_given(call)
    if rows <= _TWO_PASSES_ROWS or not few_columns or call.outputs[1] is None:
        return given
    block_rows = _BLOCK_ROWS
    while -(-rows // block_rows) >= _MOST_BLOCKS:
        block_rows *= 2
    blocks_count, item = -(-rows // block_rows), call.outputs[1].element_size()
    weights = len(given) - 1
    staged = scratch(*staging_of((blocks_count, width), (width, 1), {0}, call.target))
    sums: list[Step] = [Take(width * item), *staged, Drop()] * weights
    blocks = [Take(blocks_count * width * item)] * weights
    return [*given, *blocks, *sums, Drop(weights)]


def _group_norm(call: Call) -> Plan:
    x, samples, channels = call.args[0], call.args[3], call.args[4]
    if call.args[1] is None and call.args[2] is None:
        return []
    scale = int(samples * channels) * max(x.element_size(), 4)
    return scratch(scale, scale)


def _group_norm_backward(call: Call) -> Plan:
    x, samples, channels, groups = call.args[1], call.args[5], call.args[6], call.args[8]
    item = max(x.element_size(), 4)
    of_channels, of_groups = int(samples * channels) * item, int(samples * groups) * item
    sums = [Take(of_channels), Take(of_channels), Take(of_groups), Take(of_groups)]
    if call.args[4] is None:
        return [*_all_given(call), *sums, Drop(4)]
    return [*_all_given(call), *sums, Take(of_channels), Drop(2, below=1), Drop(3)]


def _renorm(call: Call) -> Plan:
    x, dim = call.args[0], call.args[2]
    return scratch(x.shape[dim] * max(x.element_size(), 4))


def _all_given(call: Call) -> list[Step]:
    return [Give(place) for place, output in enumerate(call.outputs) if output is not None]


RULES = {
    "aten::native_group_norm": _group_norm,
    "aten::native_group_norm_backward": _group_norm_backward,
    "aten::native_batch_norm": _batch_norm,
    "aten::native_batch_norm_backward": _batch_norm_backward,
    "aten::native_layer_norm": _layer_norm,
    "aten::renorm": _renorm,
    "aten::native_layer_norm_backward": _layer_norm_backward,
}
