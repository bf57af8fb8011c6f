"""Matrix products: the workspaces that PyTorch keeps for cuBLAS and cuBLASLt.

One block for each handle and stream (``ATen/cuda/CUDABlas.cpp``): the thread of the forward pass
and that of the backward pass have a handle each. It is allocated when the handle is first used,
after the operator's result.
"""

from __future__ import annotations

import torch

from vramkit.estimate._ops._plan import Call, Give, Keep, Plan, Step, scratch

# Bytes that grouped products take for each group, and for each multiprocessor (CUTLASS), as
# recorded on an H100.
_GROUP_BYTES = 60
_GROUPED_SM_BYTES = 512


def _product(call: Call) -> Plan:
    plan: list[Step] = [Give(0), Keep("cuBLAS", call.target.cublas_bytes)]
    if call.target.cublas_lt_bytes and call.name in ("aten::addmm", "aten::_addmm_activation"):
        plan.append(Keep("cuBLASLt", call.target.cublas_lt_bytes))
    return plan


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
