"""Matrix products: the workspaces that PyTorch keeps for cuBLAS and cuBLASLt.

One block for each handle and stream (``ATen/cuda/CUDABlas.cpp``): the thread of the forward pass
and that of the backward pass have a handle each. It is allocated when the handle is first used,
after the operator's result.
"""

from __future__ import annotations

from typing import Any

import torch

from vramkit.estimate._ops._plan import Call, Drop, Give, Keep, Plan, Step, Take, scratch, size_of

# Bytes that grouped products take for each group, and for each multiprocessor (CUTLASS), as
# recorded on an H100.
_GROUP_BYTES = 60
_GROUPED_SM_BYTES = 512


def _product(call: Call) -> Plan:
    batched = call.outputs[0].dim() == 3
    matrices = [each for each in call.args if _is_matrix(each, 3 if batched else 2)][-2:]
    copied = [Take(size_of(each)) for each in matrices if not _fits_cublas(each)]
    plan: list[Step] = [Give(0), *copied, Keep("cuBLAS", call.target.cublas_bytes)]
    if call.target.cublas_lt_bytes and _goes_to_lt(call):
        plan.append(Keep("cuBLASLt", call.target.cublas_lt_bytes))
    return [*plan, Drop(len(copied))]


def _is_matrix(argument: Any, dimensions: int) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dim() == dimensions


def _fits_cublas(matrix: torch.Tensor) -> bool:
    """Tell whether rows or columns lie one after the other, at distances that keep them apart."""
    (rows, columns), (by_row, by_column) = matrix.shape[-2:], matrix.stride()[-2:]
    in_rows = by_column == 1 and by_row >= max(1, columns)
    return in_rows or (by_row == 1 and by_column >= max(1, rows)) or matrix.is_contiguous()


def _goes_to_lt(call: Call) -> bool:
    """Products whose bias a kernel of cuBLASLt adds (``ATen/native/cuda/Blas.cpp``)."""
    if call.name not in ("aten::addmm", "aten::_addmm_activation"):
        return False
    bias, first, second = call.args[:3]
    if call.argument(3, "beta", 1) != 1 or first.is_complex():
        return False
    fused = bias.is_contiguous() and bias.numel() == bias.shape[-1] == second.shape[1]
    two = call.name == "aten::_addmm_activation" and bias.dim() == 2
    return (fused or two) and min(*first.shape, *second.shape) > 1


def _grouped(call: Call) -> Plan:
    offsets = call.argument(2, "offs")
    if isinstance(offsets, torch.Tensor):
        groups = offsets.numel()
    else:
        groups = call.args[0].shape[0] if call.args[0].dim() == 3 else 1
    return scratch(_GROUP_BYTES * groups, _GROUPED_SM_BYTES * call.target.multi_processors)


RULES = {
    **dict.fromkeys(
        (
            *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation"),
            *("aten::addmv", "aten::mv", "aten::dot"),
        ),
        _product,
    ),
    "aten::_grouped_mm": _grouped,
}
