"""Kernels that take contiguous tensors: what PyTorch copies before it calls them.

As recorded on an H200 for inputs and gradients of many layouts (``scripts/record_operators.py
strided``). A kernel that serves channels-last tensors takes those as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._prims_common import suggest_memory_format

from vramkit.estimate._ops._plan import Call, Drop, Give, Plan, Rule, Step, Take, size_of

# Tells whether a tensor is taken as it is.
_Taken = Callable[[torch.Tensor], bool]


def is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is contiguous."""
    return tensor.is_contiguous()


def is_in_own_format(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is contiguous, or channels-last without gaps."""
    return tensor.is_contiguous(memory_format=suggest_memory_format(tensor))


def _is_plain_or_channels_last(tensor: torch.Tensor) -> bool:
    """Kernels that take channels-last tensors with gaps, too."""
    return tensor.is_contiguous() or suggest_memory_format(tensor) is torch.channels_last


def _has_no_gaps(tensor: torch.Tensor) -> bool:
    """Kernels that take any strides, except of channels-last tensors."""
    return suggest_memory_format(tensor) is torch.contiguous_format or is_in_own_format(tensor)


def _is_plain_volume(tensor: torch.Tensor) -> bool:
    """Kernels of volumes take channels-last ones, too; a single one may have no batch."""
    volumes = tensor.unsqueeze(0) if tensor.dim() == 4 else tensor
    return tensor.is_contiguous() or volumes.is_contiguous(memory_format=torch.channels_last_3d)


def copies(*tensors: torch.Tensor, taken: _Taken = is_plain) -> list[Step]:
    """Return the copies of those tensors that are not taken as they are."""
    return [Take(size_of(tensor)) for tensor in tensors if not taken(tensor)]


def _births(call: Call) -> list[Step]:
    return [Give(place) for place, output in enumerate(call.outputs) if output is not None]


def _and(call: Call, taken: list[Step]) -> Plan:
    """The results come first, then blocks that the kernel takes or writes in their place."""
    return [*_births(call), *taken, Drop(len(taken))]


def _after(*places: int, taken: _Taken = is_plain) -> Rule:
    """Arguments at some places are copied."""
    return lambda call: _and(call, copies(*(call.args[place] for place in places), taken=taken))


def _in_format_of_input(places: int) -> Rule:
    """So many of the arguments, of which the second is the input, are copied in its format."""

    def rule(call: Call) -> Plan:
        kind = suggest_memory_format(call.args[1])
        return _and(
            call,
            copies(*call.args[:places], taken=lambda each: each.is_contiguous(memory_format=kind)),
        )

    return rule


def _before(place: int, taken: _Taken) -> Rule:
    def rule(call: Call) -> Plan:
        taking = copies(call.args[place], taken=taken)
        return [*taking, *_births(call), Drop(len(taking))]

    return rule


def _written(call: Call) -> Plan:
    """Results that are channels-last are written elsewhere first."""
    return _and(call, copies(*call.outputs, call.args[0]))


def _written_back(call: Call) -> Plan:
    return _and(call, copies(call.args[0], call.args[2], call.outputs[0]))


def _normalised(call: Call) -> Plan:
    """The input's copy is made before the factors."""
    copied = copies(call.args[0])
    return [Give(0), *copied, Give(1), Drop(len(copied))]


def _roll(call: Call) -> Plan:
    """One dimension after the other; the tensors between them stay to the end."""
    x, shifts = call.args[0], call.argument(1, "shifts")
    between = len(shifts) - 1 if isinstance(shifts, tuple | list) else 0
    if not between:
        return _after(0)(call)
    first = copies(x)
    plan: list[Step] = [Take(size_of(x)), *first, Drop(len(first))]
    return [*plan, *[Take(size_of(x))] * (between - 1), Give(0), Drop(between)]


_OWN_FORMAT_BACKWARD = (
    *("aten::upsample_nearest2d_backward", "aten::_upsample_nearest_exact2d_backward"),
    "aten::upsample_bilinear2d_backward",
)
_PLAIN_BACKWARD = (
    *("aten::upsample_nearest1d_backward", "aten::_upsample_nearest_exact1d_backward"),
    *("aten::upsample_nearest3d_backward", "aten::_upsample_nearest_exact3d_backward"),
    *("aten::upsample_linear1d_backward", "aten::upsample_trilinear3d_backward"),
    *("aten::upsample_bicubic2d_backward", "aten::_upsample_bilinear2d_aa_backward"),
    *("aten::_upsample_bicubic2d_aa_backward", "aten::reflection_pad1d_backward"),
    *("aten::reflection_pad2d_backward", "aten::_log_softmax_backward_data"),
)
_PLAIN = (
    *("aten::_softmax", "aten::_log_softmax", "aten::reflection_pad1d", "aten::reflection_pad2d"),
    *("aten::upsample_nearest1d", "aten::_upsample_nearest_exact1d"),
    *("aten::upsample_nearest3d", "aten::_upsample_nearest_exact3d"),
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_PLAIN, _after(0)),
    **dict.fromkeys(_PLAIN_BACKWARD, _after(0)),
    **dict.fromkeys(_OWN_FORMAT_BACKWARD, _after(0, taken=is_in_own_format)),
    **dict.fromkeys(
        (
            *("aten::max_pool2d_with_indices", "aten::avg_pool2d"),
            *("aten::upsample_nearest2d", "aten::_upsample_nearest_exact2d"),
        ),
        _after(0, taken=is_in_own_format),
    ),
    **dict.fromkeys(
        ("aten::max_pool2d_with_indices_backward", "aten::avg_pool2d_backward"),
        _in_format_of_input(2),
    ),
    "aten::_adaptive_avg_pool2d_backward": _in_format_of_input(1),
    "aten::adaptive_max_pool2d_backward": _written_back,
    "aten::_fused_rms_norm": _normalised,
    "aten::_fused_rms_norm_backward": _after(0, 1),
    "aten::upsample_bilinear2d": _after(0, taken=_has_no_gaps),
    "aten::max_pool3d_with_indices": _after(0, taken=_is_plain_volume),
    "aten::avg_pool3d": _after(0),
    **dict.fromkeys(
        ("aten::max_pool3d_with_indices_backward", "aten::avg_pool3d_backward"), _after(0)
    ),
    "aten::_adaptive_avg_pool2d": _before(0, _is_plain_or_channels_last),
    **dict.fromkeys(
        (
            *("aten::adaptive_max_pool2d", "aten::_upsample_bilinear2d_aa"),
            "aten::_upsample_bicubic2d_aa",
        ),
        _written,
    ),
    "aten::roll": _roll,
}
