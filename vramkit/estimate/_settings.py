"""Settings of PyTorch that a traced program may change: they are put back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Put back what programs set once for the whole process."""
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = {name: getattr(cudnn, name) for name in ("benchmark", "deterministic", "enabled")}
    reduced = matmul.allow_bf16_reduced_precision_reduction
    device = _default_device()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.set_float32_matmul_precision(precision)
        for name, value in flags.items():
            setattr(cudnn, name, value)
        matmul.allow_bf16_reduced_precision_reduction = reduced
        if _default_device() != device:
            torch.set_default_device(device)


def _default_device() -> torch.device | None:
    """The device that the program has set, which PyTorch tells apart from none in no public way."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device
