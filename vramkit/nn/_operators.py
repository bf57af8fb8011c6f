"""The operators behind ReLU after a convolution: fake kernels, and a mask for compiled graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vramkit._ops  # noqa: F401 - loads the libraries that define the native operators

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Of torch.autograd.grad(is_grads_batched=True), and of torch.func.vmap.
_BATCHED = ("Batched", "FuncTorchBatched")
# False where vramkit was built without nvcc, or for a torch that is not NVIDIA's.
_CUDA_KERNELS: bool = torch._C._dispatch_has_kernel_for_dispatch_key("vramkit::bias_relu_", "CUDA")


def has_kernels(x: Tensor) -> bool:
    """Tell whether the native operators take the output of a convolution of ``x``."""
    device = x.is_cpu or (x.is_cuda and _CUDA_KERNELS)
    if not device or x.dtype.is_complex:  # which autocast leaves as it is
        return False
    return x.dtype in KERNEL_DTYPES or torch.is_autocast_enabled(x.device.type)


def format_of(tensor: Tensor) -> torch.memory_format | None:
    """Return the memory format of a tensor without gaps; None for any other order."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    channels_last = _CHANNELS_LAST.get(tensor.ndim)
    if channels_last is not None and tensor.is_contiguous(memory_format=channels_last):
        return channels_last
    return None


def needs_torch(grad: Tensor) -> bool:
    """Tell whether a gradient needs PyTorch's operators.

    Those of vramkit have no gradients themselves, and take no batches of gradients (vmap).
    """
    if torch.is_grad_enabled():
        return True
    keys = torch._C._dispatch_keys(grad)
    return any(keys.has(key) for key in _BATCHED)


def unpack_mask(mask: Tensor, shape: torch.Size, form: torch.memory_format) -> Tensor:
    """Return a mask as booleans of the shape and memory format of what it was made of."""
    bits = torch.arange(8, dtype=torch.uint8, device=mask.device)
    flat = mask.unsqueeze(-1).bitwise_right_shift(bits).bitwise_and(1).flatten()
    strides = torch.empty(shape, device="meta", memory_format=form).stride()
    return flat[: shape.numel()].bool().as_strided(shape, strides)


def masked_gradient(
    grad: Tensor, mask: Tensor, form: torch.memory_format, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient where the mask has ones and zeros elsewhere, and its sum if wanted.

    Args:
        grad: ``(N, C, ...)``, in any memory format.
        mask: As :func:`masked_relu` returns it.
        form: The memory format that the mask was made of.
        bias: Whether the gradient of a bias is wanted too.
    """
    if needs_torch(grad):
        result = torch.where(unpack_mask(mask, grad.shape, form), grad, 0)
        others = [dim for dim in range(grad.ndim) if dim != 1]
        return result, result.sum(others) if bias else None
    dense = grad.contiguous(memory_format=form)
    result, sums = torch.ops.vramkit.relu_mask_backward.default(dense, mask, bias)
    return result, sums if bias else None


@torch.library.custom_op("vramkit::relu_mask", mutates_args=())
def masked_relu(x: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Return ``relu(x)`` and its mask; the mask alone is kept for the gradient.

    Args:
        x: ``(N, C, ...)`` of float32, float64, float16 or bfloat16.
        channels_last: The memory format of the result, and the order of the mask's bits.

    Returns:
        The output, and ``ceil(elements / 8)`` bytes: the first element has the lowest bit of the
        first byte.
    """
    output = x.clone(memory_format=_format(x, channels_last))
    return output, torch.ops.vramkit.relu_mask_.default(output, None)


def _format(x: Tensor, channels_last: bool) -> torch.memory_format:
    return _CHANNELS_LAST[x.ndim] if channels_last else torch.contiguous_format


def _fake_masked_relu(x: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    output = torch.empty_like(x, memory_format=_format(x, channels_last))
    return output, _fake_relu_mask_(x, None)


def _keep_mask(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.channels_last = inputs[1]


def _masked_relu_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
    (mask,) = ctx.saved_tensors
    return masked_gradient(grad, mask, _format(grad, ctx.channels_last), False)[0], None


def _fake_bias_relu_(_x: Tensor, _bias: Tensor) -> None:
    """Nothing to compute: the operator only writes to its argument."""


def _fake_relu_mask_(x: Tensor, _bias: Tensor | None) -> Tensor:
    return x.new_empty(((x.numel() + 7) // 8,), dtype=torch.uint8)


def _fake_backward(grad: Tensor, _saved: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad), grad.new_empty((grad.shape[1] if bias else 0,))


masked_relu.register_fake(_fake_masked_relu)
masked_relu.register_autograd(_masked_relu_backward, setup_context=_keep_mask)
torch.library.register_fake("vramkit::bias_relu_", _fake_bias_relu_)
torch.library.register_fake("vramkit::relu_mask_", _fake_relu_mask_)
torch.library.register_fake("vramkit::relu_backward", _fake_backward)
torch.library.register_fake("vramkit::relu_mask_backward", _fake_backward)
