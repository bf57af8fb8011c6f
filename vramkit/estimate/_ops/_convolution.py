"""Convolutions: cuDNN's workspaces and the copies that PyTorch makes for it.

A target has workspaces that were measured, by the convolution's signature. For others cuDNN's
choice of an engine cannot be known without it: a formula that was read from the measured ones is
used, and counted as assumed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from vramkit.estimate._ops._copies import copies
from vramkit.estimate._ops._plan import (
    Call,
    Drop,
    Give,
    Plan,
    Step,
    scratch,
    size_of,
)
from vramkit.estimate._ops._reduce import staging

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

# Bytes of workspaces that almost every channels-last engine asks for, and of an engine's state.
_SMALL_WORKSPACE = 131
_STATE = 16
_SPLIT_STATE = 272
_TILE = 128
# A batch-split kernel for the gradient of 1x1 weights is taken up to so many weights.
_MOST_SPLIT_WEIGHTS = 1 << 18


def signature(x: torch.Tensor, w: torch.Tensor, call: Call) -> str:
    """Return the name under which a convolution's workspaces are kept."""
    stride, padding, dilation, transposed, more, groups = _geometry(call)
    layout = "nhwc" if _is_nhwc(x) or _is_nhwc(w) else "nchw"
    sizes = "x".join(map(str, x.shape)), "x".join(map(str, w.shape))
    numbers = ",".join(str(n) for part in (stride, padding, dilation) for n in part)
    name = f"{sizes[0]} {sizes[1]} {numbers} {groups} {str(x.dtype)[6:]} {layout}"
    return f"{name} transposed {','.join(map(str, more))}" if transposed else name


def _is_nhwc(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor lets cuDNN's channels-last engines run, gaps or not."""
    if tensor.dim() not in _CHANNELS_LAST or tensor.is_contiguous():
        return False
    return suggest_memory_format(tensor) is _CHANNELS_LAST[tensor.dim()]


def _copies(x: torch.Tensor, w: torch.Tensor, *tensors: torch.Tensor) -> list[Step]:
    """Return the copies of tensors in the format that a convolution runs in."""
    nhwc = _is_nhwc(x) or _is_nhwc(w)
    kind = _CHANNELS_LAST[x.dim()] if nhwc else torch.contiguous_format
    return copies(*tensors, taken=lambda each: each.is_contiguous(memory_format=kind))


def _geometry(call: Call) -> tuple[Any, ...]:
    start = 4 if call.name == "aten::convolution_backward" else 3
    return tuple(call.args[start : start + 6])


def _workspace(kind: str, x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, call: Call) -> int:
    """Bytes of one of cuDNN's calls; kind is "forward", "input" or "weight"."""
    groups = _geometry(call)[-1]
    places = {"forward": 0, "input": 1, "weight": 2}
    name = signature(x, w, call)
    known = call.target.convolutions.get(name)
    if known is not None:
        return known[places[kind]]
    nhwc = _is_nhwc(x) or _is_nhwc(w) or _is_nhwc(y)
    if groups > 1 and x.shape[1] == groups:
        size = _depthwise_workspace(kind, x, w, nhwc=nhwc)
    elif nhwc:
        size = _nhwc_workspace(kind, x, w, call.target.multi_processors)
    else:
        stride, _, _, transposed, *_ = _geometry(call)
        size = _nchw_workspace(kind, x, w, y, stride)
        # The engine for an input's gradient, which also runs a transposed convolution.
        backwards = kind == "input" or (transposed and kind == "forward")
        size += _SMALL_WORKSPACE if backwards else 0
    call.assume(size, name)
    return size


def _depthwise_workspace(kind: str, x: torch.Tensor, w: torch.Tensor, *, nhwc: bool) -> int:
    """PyTorch's own kernels serve NCHW; cuDNN's weight gradient splits each image 16 times."""
    if kind != "weight" or not nhwc:
        return 0
    channels = -(-w.shape[0] // 64) * 64
    return channels * math.prod(w.shape[2:]) * w.element_size() * 16 * int(x.shape[0])


def _nhwc_workspace(kind: str, x: torch.Tensor, w: torch.Tensor, multi_processors: int) -> int:
    size = _SMALL_WORKSPACE
    if w.shape[1] % (16 // w.element_size()):
        size = _padded(x) + _padded(w) + _STATE
    if kind == "weight":  # split over the reduced dimension: a tile of fp32 a multiprocessor
        rows, columns = w.shape[0], math.prod(w.shape[1:])
        splits = multi_processors // (-(-rows // _TILE) * -(-columns // _TILE))
        if splits > 1:
            size += splits * w.numel() * 4 + _SPLIT_STATE
    return size


def _nchw_workspace(
    kind: str, x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, stride: Any
) -> int:
    """The tensor-core engines copy NCHW tensors to NHWC; fp32 1x1 kernels do without."""
    pointwise = math.prod(w.shape[2:]) == 1 and all(step == 1 for step in stride)
    if pointwise and x.dtype == torch.float32 and w.numel() <= _MOST_SPLIT_WEIGHTS:
        return int(x.shape[0]) * size_of(w) if kind == "weight" else 400
    return _copied(x) + _copied(w) + _copied(y) + _STATE


def _copied(tensor: torch.Tensor) -> int:
    return 0 if math.prod(tensor.shape[2:]) == 1 else _padded(tensor)


def _padded(tensor: torch.Tensor) -> int:
    """Bytes of a copy whose channels are padded to 16 bytes."""
    unit = 16 // tensor.element_size()
    channels = -(-int(tensor.shape[1]) // unit) * unit
    return tensor.numel() // int(tensor.shape[1]) * channels * tensor.element_size()


def _forward(call: Call) -> Plan:
    x, w = call.args[:2]
    workspace = _with_weight(x, w, scratch(_workspace("forward", x, w, call.outputs[0], call)))
    copied = _copies(x, w, x)
    return [*copied, Give(0), *workspace, Drop(len(copied))]


def _with_weight(x: torch.Tensor, w: torch.Tensor, workspace: Plan) -> Plan:
    """The weight is copied, too, where it is not in the format."""
    copied = _copies(x, w, w)
    return [*copied, *workspace, Drop(len(copied))]


def _backward(call: Call) -> Plan:
    dy, x, w = call.args[:3]
    copied = _copies(x, w, dy)
    plan: list[Step] = [*copied]
    order = [(0, "input"), (1, "weight")]
    if _geometry(call)[-1] == x.shape[1] > 1 and not (_is_nhwc(x) or _is_nhwc(w)):
        order.reverse()  # PyTorch's own kernels of depthwise convolutions
    for place, kind in order:
        if call.outputs[place] is not None:
            workspace: Plan = scratch(_workspace(kind, x, w, dy, call))
            workspace = _with_weight(x, w, workspace) if kind == "input" else workspace
            plan += [Give(place), *workspace]
    plan.append(Drop(len(copied)))
    inputs = _copies(x, w, x) if call.outputs[1] is not None else []
    plan = [*inputs, *plan, Drop(len(inputs))]
    if call.outputs[2] is not None:
        others = set(range(dy.dim())) - {1}
        plan += [Give(2), *scratch(*staging(dy, others, call.target))]
    return plan


RULES = {"aten::convolution": _forward, "aten::convolution_backward": _backward}
