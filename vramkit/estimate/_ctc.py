"""Connectionist temporal classification: which kernel a GPU takes, and what that allocates.

Written from PyTorch's sources, ``ATen/native/LossCTC.cpp``, ``ATen/native/cuda/LossCTC.cu`` and
``ATen/native/cudnn/LossCTC.cpp``: those of 2.13, which copies the targets to the host to ask for a
kernel of another vendor, and those from before that copy, which allocate the same on the GPU. The
lengths of the sequences are values of tensors, which PyTorch reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._ops._plan import Drop, Give, Take
from vramkit.estimate._packed import Known

_aten = torch.ops.aten
_MEAN, _SUM = 1, 2
_LENGTH_BYTES = 8
# cuDNN's kernel takes targets shorter than that.
_CUDNN_LENGTH = 256
# ``ctc_loss_backward_gpu_template`` calls larger problems large, and subtracts their blanks apart.
_SMALL = 450


class Recorder(Protocol):
    """Records what an operator allocates."""

    def record(self, args: Any, kwargs: Any, outputs: tuple[Any, ...]) -> None:
        """Record the births of its results, and what it allocates inside."""

    def follow(self, plan: Sequence[Any], outputs: tuple[Any, ...]) -> None:
        """Record what a plan says."""


def composites(known: Known, assume: Callable[[str], None]) -> dict[str, Callable[..., Any]]:
    """Return what the operators of this loss do, by their names.

    Args:
        known: Returns the values of a tensor, or None where they depend on data.
        assume: Called with what is assumed.
    """

    def of_tensors(
        log_probs: Any,
        targets: Any,
        input_lengths: Any,
        target_lengths: Any,
        blank: int = 0,
        reduction: int = _MEAN,
        zero_infinity: bool = False,
    ) -> Any:
        inputs, wanted = _known_lengths(input_lengths, known), _known_lengths(target_lengths, known)
        batch = log_probs.shape[1] if log_probs.dim() == 3 else 1
        if wanted is None and targets.dim() == 2:
            wanted = [int(targets.shape[1])] * batch
            assume(
                f"ctc_loss() at {line_of_caller()} has a target of the full length, "
                f"{targets.shape[1]:,}; shorter ones need less."
            )
        integers = input_lengths.dtype == target_lengths.dtype == torch.int32
        fits_cudnn = integers and _fits_cudnn(log_probs, targets, blank)
        if wanted is None or (inputs is None and fits_cudnn):
            raise _unknown_lengths()
        inputs = inputs or [int(log_probs.shape[0])] * batch
        if fits_cudnn and _cudnn_takes(inputs, wanted):
            lengths = (input_lengths, target_lengths)
            loss = _by_cudnn(log_probs, targets, *lengths, blank, zero_infinity)
            return _reduced(loss, target_lengths.clamp_min(1), reduction)
        return of_lists(log_probs, targets, inputs, wanted, blank, reduction, zero_infinity)

    return {
        "ctc_loss.Tensor": of_tensors,
        "ctc_loss.IntList": of_lists,
        "_ctc_loss_backward": _backward,
    }


def of_lists(
    log_probs: Any,
    targets: Any,
    input_lengths: Sequence[int],
    target_lengths: Sequence[int],
    blank: int = 0,
    reduction: int = _MEAN,
    zero_infinity: bool = False,
) -> Any:
    """What ``aten::ctc_loss`` does with lengths that are numbers."""
    batched = log_probs.dim() == 3
    log_probs = log_probs if batched else log_probs.unsqueeze(1)
    whole = all(length == log_probs.shape[0] for length in input_lengths)
    fits = whole and targets.device.type == "cpu" and _fits_cudnn(log_probs, targets, blank)
    if fits and _cudnn_takes(input_lengths, target_lengths):
        lengths = (list(input_lengths), list(target_lengths))
        loss = _by_cudnn(log_probs, targets, *lengths, blank, zero_infinity)
    else:
        lists = (list(input_lengths), list(target_lengths))
        loss = _aten._ctc_loss(
            log_probs, targets.to(log_probs.device, torch.int64), *lists, blank, zero_infinity
        )[0]
        if zero_infinity:
            loss = _without_infinite(loss, loss)
    if reduction == _MEAN:
        options = {"dtype": loss.dtype, "device": loss.device}
        return _reduced(loss, torch.tensor(list(target_lengths), **options).clamp_min(1), reduction)
    return _reduced(loss if batched or reduction == _SUM else loss.squeeze(0), None, reduction)


def forward(recorder: Recorder, func: Any, args: tuple[Any, ...], _: dict[str, Any]) -> Any:
    """What ``aten::_ctc_loss`` returns: the losses, and the sums that its gradient needs."""
    log_probs, targets = args[:2]
    if log_probs.device.type != "cuda":
        return NotImplemented
    with _disable_current_modes():
        of_shape = (_on_meta(log_probs), _on_meta(targets))
        shapes = [each.shape for each in func(*of_shape, *args[2:])]
    outputs = tuple(log_probs.new_empty(shape) for shape in shapes)
    # Lengths of targets and of inputs, and where the targets begin.
    lengths = [Take(_LENGTH_BYTES * log_probs.shape[1])] * 3
    recorder.follow([*lengths, Give(1), Give(0), Drop(below=1), Drop(below=1), Drop()], outputs)
    return outputs


def by_cudnn(recorder: Recorder, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``aten::_cudnn_ctc_loss`` returns: the losses and their gradient."""
    log_probs = args[0]
    outputs = (log_probs.new_empty(log_probs.shape[1]), log_probs.new_empty(log_probs.shape))
    recorder.record(args, kwargs, outputs)
    return outputs


def _backward(
    grad: Any,
    log_probs: Any,
    targets: Any,
    input_lengths: Sequence[int],
    target_lengths: Sequence[int],
    losses: Any,
    log_alpha: Any,
    blank: int,
    zero_infinity: bool = False,
) -> Any:
    del grad, input_lengths, target_lengths, blank
    steps, batch, labels = log_probs.shape
    wanted, inputs, starts = (targets.new_empty(batch, dtype=torch.int64) for _ in range(3))
    log_beta = torch.empty_like(log_alpha, memory_format=torch.contiguous_format)
    found = torch.empty_like(log_probs, memory_format=torch.contiguous_format)
    if 2 * steps + 24 * batch // 10 + 2 * labels // 10 > _SMALL:
        both = _blanks_of(log_alpha) + _blanks_of(log_beta)
        total = torch.logsumexp(both, 2, keepdim=True)
        del total, both
        if zero_infinity:
            found = _without_infinite(losses.view(1, batch, 1), found)
    del log_beta, inputs, wanted, starts
    return found


def _without_infinite(losses: Any, values: Any) -> Any:
    """The compilers of PyTorch's builds evaluate the last argument of ``where`` first."""
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    infinite = losses == math.inf
    found = torch.where(infinite, zero, values)
    del infinite, zero
    return found


def _blanks_of(sums: Any) -> Any:
    """Every other place is a blank."""
    strides = sums.stride()
    shape = (*sums.shape[:2], sums.shape[2] // 2 + 1)
    return sums.as_strided(shape, (*strides[:2], 2 * strides[2]))


def _by_cudnn(*args: Any) -> Any:
    *inputs, zero_infinity = args
    return _aten._cudnn_ctc_loss(*inputs, True, zero_infinity)[0]


def _reduced(loss: Any, lengths: Any, reduction: int) -> Any:
    if reduction == _MEAN:
        return (loss / lengths).mean()
    return loss.sum() if reduction == _SUM else loss


def _fits_cudnn(log_probs: Any, targets: Any, blank: int) -> bool:
    """Tell whether cuDNN takes such tensors, whatever their lengths are."""
    if not torch.backends.cudnn.enabled or blank != 0 or log_probs.dim() != 3:
        return False
    kinds = log_probs.dtype == torch.float32 and targets.dtype == torch.int32
    return bool(kinds and targets.dim() == 1 and targets.is_contiguous())


def _cudnn_takes(inputs: Sequence[int], targets: Sequence[int]) -> bool:
    pairs = zip(inputs, targets, strict=False)
    return all(target < _CUDNN_LENGTH and target <= length for length, target in pairs)


def _known_lengths(lengths: Any, known: Known) -> list[int] | None:
    value = known(lengths)
    if value is None:
        return None
    with _disable_current_modes():
        return [int(length) for length in value.reshape(-1).tolist()]


def _unknown_lengths() -> UntraceableError:
    return UntraceableError(
        f"{line_of_caller()} calls ctc_loss with lengths that depend on the data, so its memory "
        "cannot be known; make them constants in the estimated step, such as torch.full((batch,), "
        "longest), or pass padded targets of two dimensions, whose width then counts"
    )


def _on_meta(tensor: Any) -> Any:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
