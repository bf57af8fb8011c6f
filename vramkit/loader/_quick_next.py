"""Next batches without PyTorch's profiler range where no profiler listens."""

from typing import Any

from torch.autograd import profiler


class QuickNext:
    """Overrides ``__next__`` of PyTorch's iterators; to be named before them as a base.

    The range costs more than a small batch. It is entered whenever a profiler runs, and what
    PyTorch does besides is left to PyTorch where there is any of it.
    """

    _sampler_iter: Any
    _num_yielded: int
    _IterableDataset_len_called: int | None

    def __next__(self) -> Any:
        if (
            getattr(profiler, "_is_profiler_enabled", True)
            or self._sampler_iter is None
            or self._IterableDataset_len_called is not None
        ):
            return super().__next__()  # type: ignore[misc]
        data = self._next_data()  # type: ignore[attr-defined]
        self._num_yielded += 1
        return data
