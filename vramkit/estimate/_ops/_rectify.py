"""vramkit's own passes for ReLU after a convolution, as ``csrc/ops/conv/rectify_cuda.cu`` runs."""

from __future__ import annotations

import math

import torch

from vramkit.estimate._ops._plan import Call, Give, Plan, scratch

# Of csrc/ops/conv/launch_cuda.h and rectify_cuda.cu.
_THREADS, _WARP, _GROUP = 256, 32, 8
_BLOCKS_PER_MULTI_PROCESSOR = 8
_PLANE_PART, _ROWS_PER_THREAD = 1 << 13, 16


def _backward(call: Call) -> Plan:
    """The result, and the bias's gradient from partial sums."""
    grad = call.args[0]
    if not call.argument(2, "bias", default=False) or not grad.numel():
        return []
    return [Give(0), *_around(Give(1), _sums_bytes(grad, call.target.multi_processors))]


def _around(step: Give, size_bytes: int) -> Plan:
    take, drop = scratch(size_bytes)
    return [take, step, drop]


def _sums_bytes(grad: torch.Tensor, multi_processors: int) -> int:
    element = 8 if grad.dtype == torch.float64 else 4
    batch, channels, inner = grad.shape[0], grad.shape[1], math.prod(grad.shape[2:])
    if grad.is_contiguous():
        return element * batch * channels * -(-inner // _PLANE_PART)
    width = _GROUP if channels % _GROUP == 0 else 1
    columns = -(-channels // width)
    across = min(columns, _WARP)
    rows = _THREADS // across * _ROWS_PER_THREAD
    most = max(1, multi_processors * _BLOCKS_PER_MULTI_PROCESSOR // -(-columns // across))
    blocks = min(max(-(-batch * inner // rows), 1), most)
    return element * blocks * channels


def _only_results(_: Call) -> Plan:
    return []


RULES = {
    "vramkit::bias_relu_": _only_results,
    "vramkit::relu_mask_": _only_results,
    "vramkit::relu_backward": _backward,
    "vramkit::relu_mask_backward": _backward,
}
