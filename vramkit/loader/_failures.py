"""Exceptions of a batch, which are raised when the training loop asks for it."""

import pickle
from typing import NoReturn, Self

from torch._utils import ExceptionWrapper


class WorkerFailure(ExceptionWrapper):
    """PyTorch's wrapper, which also keeps the exception itself.

    PyTorch raises the type anew with one text. Where the type takes other arguments, this raises
    the exception as it was, and the remote traceback is its cause.
    """

    def __init__(self, wrapper: ExceptionWrapper, pickled: bytes) -> None:
        self.exc_type = wrapper.exc_type
        self.exc_msg = wrapper.exc_msg
        self.where = wrapper.where
        self._pickled = pickled

    @classmethod
    def of(cls, wrapper: ExceptionWrapper, error: BaseException) -> Self:
        """Keep an exception beside its wrapper, if it can be pickled."""
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
        except Exception:  # noqa: BLE001 - the user's own pickling code may raise anything
            pickled = b""
        return cls(wrapper, pickled)

    def reraise(self) -> NoReturn:
        """Raise what the worker raised."""
        try:
            super().reraise()  # type: ignore[no-untyped-call]
        except BaseException as err:
            original = None
            if not isinstance(err, self.exc_type):
                # PyTorch's answer where the type cannot be made from one text.
                original = self._original()
            # The frame of PyTorch's function holds the exception.
            err.__traceback__ = None
            if original is None:
                raise
            raise original from err
        raise AssertionError("reraise() returned")

    def _original(self) -> BaseException | None:
        if self._pickled:
            return pickle.loads(self._pickled)  # type: ignore[no-any-return]
        return None


class ArrivalFailure(ExceptionWrapper):
    """An exception that was raised in this process while a batch was read.

    Raised at once, it would leave PyTorch's iterator waiting for that batch for ever.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def reraise(self) -> NoReturn:
        """Raise it."""
        raise self._error
