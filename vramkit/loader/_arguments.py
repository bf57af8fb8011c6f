"""The arguments that vramkit's loader has beyond PyTorch's."""

import os
from collections.abc import Callable
from typing import Any

import torch

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, UnsupportedDeviceError
from vramkit.units import parse_bytes

_DEFAULT_DEPTH = 2


def device_of(device: Any) -> torch.device | None:
    """Return where batches are delivered.

    Raises:
        ArgumentTypeError: It is neither a device nor a string nor an index.
        InvalidArgumentError: It is no device.
        UnsupportedDeviceError: It is neither a CUDA device nor the host, or this machine has none.
    """
    if device is None:
        return None
    if isinstance(device, bool) or not isinstance(device, (torch.device, str, int)):
        raise ArgumentTypeError(
            f"device must be a torch.device, a string or an index, got {device!r} of type "
            f"{type(device).__qualname__}"
        )
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError as err:
        raise InvalidArgumentError(f"device={device!r} is not a device: {err}") from err
    if found.type not in ("cuda", "cpu"):
        raise UnsupportedDeviceError(
            f"the loader delivers batches on CUDA devices and in host memory, got {device!r}"
        )
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedDeviceError(
            f"device={device!r} needs a CUDA device, and PyTorch sees none; leave device out to "
            "get batches in host memory"
        )
    return found


def depth_of(prefetch_batches: int | None, device: torch.device | None) -> int:
    """Return how many batches are delivered before they are asked for.

    Raises:
        ArgumentTypeError: It is no integer.
        InvalidArgumentError: It is negative, or there is no device.
    """
    if prefetch_batches is None:
        return 0 if device is None else _DEFAULT_DEPTH
    if isinstance(prefetch_batches, bool) or not isinstance(prefetch_batches, int):
        raise ArgumentTypeError(
            f"prefetch_batches must be an integer, got {type(prefetch_batches).__qualname__}"
        )
    if prefetch_batches < 0:
        raise InvalidArgumentError(f"prefetch_batches must not be negative, got {prefetch_batches}")
    if device is None and prefetch_batches:
        raise InvalidArgumentError(
            f"prefetch_batches={prefetch_batches} needs device=: without it, batches are fetched "
            "no earlier than PyTorch's loader fetches them"
        )
    return prefetch_batches


def workers_of(workers: str) -> str:
    """Return the kind of workers.

    Raises:
        InvalidArgumentError: There is no such kind.
    """
    if workers not in ("process", "thread"):
        raise InvalidArgumentError(f"workers must be 'process' or 'thread', got {workers!r}")
    return workers


def transform_of(transform: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """Return the transform.

    Raises:
        ArgumentTypeError: It cannot be called.
    """
    if transform is not None and not callable(transform):
        raise ArgumentTypeError(f"transform must be callable, got {type(transform).__qualname__}")
    return transform


def staging_of(staging_bytes: int | str | None) -> int:
    """Return the most memory that staging may take: a quarter of the machine's by default.

    Raises:
        ArgumentTypeError: It is neither an integer nor a text.
        InvalidArgumentError: It is no size.
    """
    if staging_bytes is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return parse_bytes(staging_bytes, name="staging_bytes")
