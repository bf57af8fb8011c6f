"""vramkit's operators: loads their libraries and gives them types and fake kernels.

Importing this module imports torch; nothing that ``import vramkit`` runs may do so.
"""

from __future__ import annotations

import torch

from vramkit._build import BuildError, library_dir, ops_cpu_path
from vramkit.errors import NativeLibraryError

_CUDA_LIBRARY = "libvramkit_ops_cuda.so"


def fill_pattern_(tensor: torch.Tensor, *, seed: int) -> None:
    """Overwrite all bytes of a contiguous tensor with a pattern of position and seed.

    Args:
        tensor: Any shape and dtype, contiguous.
        seed: Any 64-bit number; other seeds give other patterns.

    Raises:
        RuntimeError: The tensor is not contiguous.

    >>> tensor = torch.empty(1000)
    >>> fill_pattern_(tensor, seed=7)
    >>> int(count_mismatches(tensor, seed=7))
    0
    """
    torch.ops.vramkit.fill_pattern_(tensor, seed)


def count_mismatches(tensor: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Count the 4-byte words that differ from what :func:`fill_pattern_` wrote.

    Args:
        tensor: Any shape and dtype, contiguous. Up to three last bytes count as a word.
        seed: The seed that the pattern was written with.

    Returns:
        An int64 scalar on the tensor's device; the host does not wait for it.

    Raises:
        RuntimeError: The tensor is not contiguous.

    >>> tensor = torch.empty(8, dtype=torch.uint8)
    >>> fill_pattern_(tensor, seed=1)
    >>> tensor[5] ^= 1
    >>> int(count_mismatches(tensor, seed=1))
    1
    """
    result: torch.Tensor = torch.ops.vramkit.count_mismatches(tensor, seed)
    return result


def _load_libraries() -> None:
    try:
        torch.ops.load_library(ops_cpu_path())
    except BuildError as err:
        raise NativeLibraryError(f"no operators for CPU tensors: {err}") from err
    cuda_library = library_dir() / _CUDA_LIBRARY
    if torch.backends.cuda.is_built() and cuda_library.is_file():
        torch.ops.load_library(cuda_library)


def _fake_fill_pattern(_tensor: torch.Tensor, _seed: int) -> None:
    """Nothing to compute: the op only writes to its argument."""


def _fake_count_mismatches(tensor: torch.Tensor, _seed: int) -> torch.Tensor:
    return tensor.new_empty((), dtype=torch.int64)


_load_libraries()
torch.library.register_fake("vramkit::fill_pattern_", _fake_fill_pattern)
torch.library.register_fake("vramkit::count_mismatches", _fake_count_mismatches)
