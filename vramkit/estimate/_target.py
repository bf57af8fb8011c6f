"""What is known of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _table() -> Any:
    return field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Target:
    """A GPU, with the library versions beside it.

    Attributes:
        name: Short name, for ``target=``.
        title: The name that the driver gives.
        capability: Compute capability.
        multi_processors: Number of streaming multiprocessors.
        threads_per_multi_processor: Most resident threads of each.
        l2_bytes: Size of the second-level cache.
        total_bytes: Memory that ``torch.cuda.mem_get_info`` reports as total.
        outside_bytes: Device memory that PyTorch's allocator does not see: what the driver keeps,
            the context, and the code of the libraries.
        outside_low_bytes: Least of it that is plausible.
        outside_high_bytes: Most of it that is plausible.
        cublas_bytes: Workspace that PyTorch allocates for each handle and stream of cuBLAS.
        cublas_lt_bytes: The same for cuBLASLt.
        cudnn_version: cuDNN's version, as ``torch.backends.cudnn.version()`` gives it.
        measured: Whether operators and overhead were measured on such a GPU.
        assumed: What is not measured, in a sentence; empty where all is.
        convolutions: Measured workspaces of cuDNN by the convolution's signature: for the result,
            the input's gradient and the weight's gradient.
        library_bytes: What the first use of a library takes outside the allocator, of libraries
            that most steps do not use.
        communicator_bytes: What NCCL takes: for the ``"first"`` communicator, each ``"further"``
            one, and the first ``"all_to_all"``; empty where it was not measured.
    """

    name: str
    title: str
    capability: tuple[int, int]
    multi_processors: int
    threads_per_multi_processor: int
    l2_bytes: int
    total_bytes: int
    outside_bytes: int
    outside_low_bytes: int
    outside_high_bytes: int
    cublas_bytes: int
    cublas_lt_bytes: int = 1 << 20
    cudnn_version: int = 91900
    measured: bool = False
    assumed: str = ""
    convolutions: Mapping[str, tuple[int, int, int]] = _table()
    library_bytes: Mapping[str, int] = _table()
    communicator_bytes: Mapping[str, int] = _table()
