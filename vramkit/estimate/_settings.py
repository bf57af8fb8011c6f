"""Settings of the process that a traced program may change: they are put back afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

_CUDA, _CUDNN, _MATMUL = torch.backends.cuda, torch.backends.cudnn, torch.backends.cuda.matmul
_GENERATED = torch.utils.deterministic
# Each with the function that reads it, and the one that sets it.
Setting = tuple[Callable[[], Any], Callable[[Any], Any]]


def _attribute(thing: Any, name: str) -> Setting:
    return lambda: getattr(thing, name), lambda value: setattr(thing, name, value)


def _precision(backend: str, operation: str) -> Setting:
    read, write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    return lambda: read(backend, operation), lambda value: write(backend, operation, value)


def _autocast(device: str) -> tuple[Setting, ...]:
    return (
        (
            lambda: torch.is_autocast_enabled(device),
            lambda value: torch.set_autocast_enabled(device, value),
        ),
        (
            lambda: torch.get_autocast_dtype(device),
            lambda value: torch.set_autocast_dtype(device, value),
        ),
    )


def _default_device() -> torch.device | None:
    """The device that the program has set, which PyTorch tells apart from none in no public way."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


# Those of all backends, and those that set others, come first.
_SETTINGS: tuple[Setting, ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (_default_device, torch.set_default_device),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    _attribute(_GENERATED, "fill_uninitialized_memory"),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    *(_attribute(_CUDNN, name) for name in ("benchmark", "deterministic", "enabled", "allow_tf32")),
    *(
        _precision(backend, operation)
        for backend, operations in {
            "generic": ("all",),
            "cuda": ("all", "matmul", "conv", "rnn"),
            "mkldnn": ("all", "matmul", "conv", "rnn"),
        }.items()
        for operation in operations
    ),
    _attribute(_MATMUL, "allow_fp16_reduced_precision_reduction"),
    _attribute(_MATMUL, "allow_bf16_reduced_precision_reduction"),
    (_CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    (_CUDA.mem_efficient_sdp_enabled, _CUDA.enable_mem_efficient_sdp),
    (_CUDA.math_sdp_enabled, _CUDA.enable_math_sdp),
    (_CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
    (torch._C._get_sdp_priority_order, torch._C._set_sdp_priority_order),
    *_autocast("cuda"),
    *_autocast("cpu"),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_num_threads, torch.set_num_threads),
    (random.getstate, random.setstate),
)


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Put back what programs set once for the whole process."""
    before = [_read(read) for read, _ in _SETTINGS]
    numbers = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(numbers)
        for (read, write), value in zip(_SETTINGS, before, strict=True):
            if value is not _UNKNOWN and _read(read) != value:
                write(value)


def _read(read: Callable[[], Any]) -> Any:
    """Read a setting that the program may have made unreadable.

    PyTorch has two interfaces to the precision of products. After a use of both, the older one
    raises; the newer one, which is read besides, has all of it.
    """
    try:
        return read()
    except RuntimeError:
        return _UNKNOWN


_UNKNOWN = object()
