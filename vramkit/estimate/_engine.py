"""What autograd's engine does in place, except for tensor subclasses, which fake tensors are."""

from __future__ import annotations

import functools
import sys
from types import FrameType

import torch
from torch.utils._python_dispatch import _disable_current_modes

# References to a gradient that only the engine holds, as seen from a dispatch mode.
_MOST_TENSOR_REFERENCES = 4
_MOST_STORAGE_REFERENCES = 2
# Through which operators are called that stand for those of C++ code.
_CALLS_FILE = torch._ops.__file__
_DISPATCH = ("__torch_dispatch__", "_fn", "inner", "wrapper")


@functools.cache
def start() -> None:
    """Have the engine count the real devices, which it does once, in the first backward pass.

    If it counted the pretended one, it would start a thread for it: forked children could then run
    no backward pass any more, and the second GPU of a machine would be unknown to it.
    """
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        torch.zeros((), device="cpu", requires_grad=True).backward()


def in_backward() -> bool:
    """Tell whether autograd's engine is at work in this thread."""
    return bool(torch._C._current_graph_task_id() != -1)


def from_engine() -> bool:
    """Tell whether C++ code of the engine called this operator, rather than Python."""
    if not in_backward() or torch.is_grad_enabled():
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_machinery(frame):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


def node_is(name: str) -> bool:
    """Tell whether the engine is at a node of the graph whose name begins so."""
    node = torch._C._current_autograd_node()
    return node is not None and str(node.name()).startswith(name)


def holds_alone(tensor: torch.Tensor) -> bool:
    """Tell whether the engine holds the only reference to a gradient."""
    if tensor._use_count() > _MOST_TENSOR_REFERENCES:  # type: ignore[attr-defined]
        return False
    count = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return bool(count <= _MOST_STORAGE_REFERENCES)


def is_dense(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor fills its memory without gaps or overlap."""
    expected = 1
    dims = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    for stride, size in dims:
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _is_machinery(frame: FrameType) -> bool:
    code = frame.f_code
    ours = "/vramkit/estimate/" in code.co_filename or code.co_filename == _CALLS_FILE
    return ours or code.co_name in _DISPATCH
