"""Which batches PyTorch's iterators have taken from their sampler so far."""

from typing import Any

from torch.utils.data import _DatasetKind


class Taken:
    """What a source tells of the batches that were asked for, also of those that raised.

    Attributes:
        taken: How many there were in this epoch.
        number: How many batches the sampler had drawn before the latest.
    """

    taken = 0
    number = -1

    def take(self, number: int | None = None) -> None:
        """Note that a batch has been taken, the next one unless told otherwise."""
        self.number = self.taken if number is None else number
        self.taken += 1


class TakenFromWorkers(Taken):
    """Does so for PyTorch's multi-process iterator; to be named before it as a base."""

    _in_order: bool
    _dataset_kind: int
    _arrived = -1

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self.taken = 0
        super()._reset(loader, first_iter)  # type: ignore[misc]

    def _get_data(self) -> Any:
        self._arrived, data = super()._get_data()  # type: ignore[misc]
        return self._arrived, data

    def _process_data(self, *arguments: Any) -> Any:
        # The batches of an iterable dataset have no order beyond that of their arrival.
        in_order = self._in_order or self._dataset_kind == _DatasetKind.Iterable
        self.take(None if in_order else self._arrived)
        return super()._process_data(*arguments)  # type: ignore[misc]
