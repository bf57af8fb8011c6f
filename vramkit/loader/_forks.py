"""Batches that lie in shared slots when the process forks.

A child sees the slots of its parent, and the parent uses them again. So the child of a fork copies
the batches that its parent held, and until it has done so, or has ended, the parent uses none of
their slots. A worker would copy them in vain: it sees them copy-on-write, and the parent leaves
their slots alone while it lives.
"""

import contextlib
import os
import select
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Reader(Protocol):
    """A process that may still read what lay in a slot when it was forked."""

    def ended(self) -> bool:
        """Whether it needs the slot no longer."""


class Holder(Protocol):
    """Has slots with batches."""

    def has_batches(self) -> bool:
        """Whether tensors of the user lie in a slot."""

    def fork_begins(self, reader: Reader) -> None:
        """From now on, note the reader at each slot that is given back."""

    def forked_in_parent(self, reader: Reader) -> None:
        """Note the reader at each slot that has a batch."""

    def forked_in_child(self) -> bool:
        """Copy the batches for this process; returns whether it reads the slots no longer."""

    def forked_in_worker(self) -> None:
        """Make the batches copy-on-write for this process."""


class Workers:
    """The workers of one iterator, which live longer than the fork takes."""

    def __init__(self) -> None:
        # Until they have been counted, none has ended.
        self.processes: list[Any] | None = None

    def ended(self) -> bool:
        """Whether all of them have."""
        started = self.processes
        return started is not None and all(each.exitcode is not None for each in started)


class _Child:
    """A forked child. It closes its end of a pipe when it has copied, or by ending."""

    # If no pipe can be made.
    _reading = _writing = -1

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        _pipes.add(self)

    def ended(self) -> bool:
        if self._reading >= 0:
            poll = select.poll()
            poll.register(self._reading, select.POLLIN)
            if not poll.poll(0):
                return False
            self.close()
        return True

    def close_writing(self) -> None:
        writing, self._writing = self._writing, -1
        if writing >= 0:
            os.close(writing)

    def close(self) -> None:
        self.close_writing()
        reading, self._reading = self._reading, -1
        if reading >= 0:
            os.close(reading)

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the process modules may be gone.
        if not is_ending():
            self.close()


class _Unknown:
    """A child of which nothing can be learnt, because there are no file descriptors left."""

    def ended(self) -> bool:
        return False


_holders: "weakref.WeakSet[Holder]" = weakref.WeakSet()
# The pipes of all children that have not ended. A child has inherited them and closes them.
_pipes: "weakref.WeakSet[_Child]" = weakref.WeakSet()
_kept_open: list["_Child"] = []
_forking = threading.local()


def watch(holder: Holder) -> None:
    """Ask the holder at each fork, as long as it lives."""
    _holders.add(holder)


@contextlib.contextmanager
def starting_workers(workers: Workers) -> Iterator[None]:
    """The forks of this thread make these workers."""
    _forking.workers = workers
    try:
        yield
    finally:
        _forking.workers = None


def _before() -> None:
    reader: Reader | None = getattr(_forking, "workers", None)
    holders = [each for each in list(_holders) if each.has_batches()]
    if reader is None and holders:
        try:
            reader = _Child()
        except OSError:
            reader = _Unknown()
    _forking.now = (reader, holders)
    for each in holders:
        assert reader is not None
        each.fork_begins(reader)


def _after_in_parent() -> None:
    reader, holders = _forking.now
    _forking.now = None
    for each in holders:
        each.forked_in_parent(reader)
    if isinstance(reader, _Child):
        reader.close_writing()


def _after_in_child() -> None:
    _forking.now = None
    is_worker = getattr(_forking, "workers", None) is not None
    copied = True
    for each in list(_holders):
        if is_worker:
            each.forked_in_worker()
        else:
            copied = each.forked_in_child() and copied
    for pipe in list(_pipes):
        if copied:
            pipe.close()
        else:
            # The parent leaves its slots alone until this process has ended.
            _kept_open.append(pipe)


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
