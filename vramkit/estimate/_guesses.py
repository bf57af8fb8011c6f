"""What depends on data: refused with advice, or guessed where the caller allows it."""

from __future__ import annotations

from typing import Any

import torch

from vramkit.estimate._attribution import line_of_error

_aten = torch.ops.aten

# Words of torch's errors, what they mean for an estimate, and what to do.
_EXPLAINED = {
    "Expected all tensors to be on the same device": (
        "mixes tensors on the CPU and on 'cuda', but a GPU needs all of them on the same device",
        "move all of them to 'cuda'; register_buffer() lets a module move its plain tensors, too",
    ),
    "DispatchStub: missing kernel for cuda": (
        "calls a kernel that only a torch with CUDA has",
        "estimate it beside such a torch, or replace the layer",
    ),
    "but its data is not allocated yet": (
        "gives a tensor's data to code outside PyTorch's operators",
        "leave it out, or make it a custom operator with a fake implementation",
    ),
    "doesn't have NCCL built in": (
        "starts NCCL without a number of ranks to estimate for",
        "pass world_size=, on the command line --world-size",
    ),
    "Cannot get CUDA generator": (
        "makes a generator of random numbers on the GPU",
        "leave it out, or seed the default one by torch.cuda.manual_seed",
    ),
    "Error initializing torch.distributed using env://": (
        "starts torch.distributed without a number of ranks to estimate for",
        "pass world_size=, on the command line --world-size",
    ),
    "Default process group has not been initialized": (
        "uses torch.distributed without a number of ranks to estimate for",
        "pass world_size=, on the command line --world-size",
    ),
    "self.shape_env must not be None": (
        "makes a nested tensor, or another one whose size depends on the data",
        "use padded tensors in the estimated step",
    ),
    "with arguments from the 'CUDA' backend": (
        "puts a tensor on 'cuda' where the trace does not see it, as in a thread of its own",
        "compute in the thread that runs the step",
    ),
    "Backend doesn't support create a new Stream": (
        "makes a torch.Stream, which is not simulated",
        "use torch.cuda.Stream in the estimated step",
    ),
    "Cannot access storage of": (
        "makes a sparse or nested tensor that is not followed",
        "use dense tensors in the estimated step",
    ),
}


_OF_SYNC_BATCH_NORM = ("aten::batch_norm_stats", "aten::batch_norm_elemt")


def guess(func: Any, args: Any) -> Any:
    """Return a result that needs no less memory than the real one, or NotImplemented.

    A condition holds, a number is one, and every element is selected: masks choose by ``nonzero``.
    """
    if func is _aten._local_scalar_dense.default:
        dtype = args[0].dtype
        return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
    if func is _aten.is_nonzero.default:
        return True
    if func is _aten.nonzero.default:
        tensor = args[0]
        return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)
    return NotImplemented


def refusal(func: Any, line: str, err: Exception, may_guess: bool) -> str:
    """Say which operator cannot be traced, where, why, and what to do."""
    name, where = func.name(), line or "a place without Python code"
    if func in (_aten._local_scalar_dense.default, _aten.is_nonzero.default):
        reason = "reads a value that depends on the data"
        advice = (
            "keep this out of the step (what is only printed or averaged may be read by x.item(), "
            "and in your own files by float(x) and int(x)), or pass guess='allow', on the command "
            "line --guess allow (the value counts as 1)"
        )
    elif func in (_aten.nonzero.default, _aten.masked_select.default, _aten.index.Tensor):
        reason = "makes a tensor whose size depends on the data"
        advice = (
            "use torch.where or a fixed size, or pass guess='allow', on the command line --guess "
            "allow (all are selected)"
        )
    elif name.startswith("vramkit::table"):
        reason = "needs a vramkit.nn.SparseEmbedding with a fused optimizer, which has no fakes"
        advice = (
            "leave the table out of the step, put torch.empty(..., requires_grad=True) in place of "
            "its rows, and add table.stats().device_bytes of a table in use"
        )
    elif name in _OF_SYNC_BATCH_NORM:
        reason = "belongs to SyncBatchNorm among several ranks, which is not followed"
        advice = (
            "use nn.BatchNorm2d or its like in the estimated step: only gathered statistics, a few "
            "numbers a channel and rank, come on top"
        )
    else:
        reason = f"cannot run without data ({_first_line(err)})"
        advice = (
            "put a tensor of the result's shape, such as torch.empty(..., device='cuda'), in its "
            "place, or leave it out"
            if name.startswith("aten::")
            else "give it a fake implementation by torch.library.register_fake, or leave it out"
        )
    if may_guess:
        advice = advice.partition(", or pass guess=")[0] + "; no guess is made for it"
    return f"{name} at {where} {reason}, so its memory cannot be known; {advice}"


def refusal_of(err: Exception) -> str | None:
    """Explain an error of torch whose text does not say what is to be done; None for others."""
    for words, (what, advice) in _EXPLAINED.items():
        if words in str(err):
            return f"{line_of_error(err)} {what}, so its memory cannot be known; {advice}"
    return None


def _first_line(err: Exception) -> str:
    text = str(err).strip().splitlines()
    return f"{type(err).__name__}: {text[0][:160]}" if text else type(err).__name__
