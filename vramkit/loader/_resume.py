"""Where an epoch stands, so that another loader can go on from there.

The indices of an epoch follow from the random generators as they were when it began. The state
holds these and the number of batches that were yielded; to resume, the same indices are drawn and
the first of them skipped. So the number of workers may differ, and prefetched batches do not count.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import IterableDataset

from vramkit.errors import InvalidArgumentError
from vramkit.loader._dataset_state import is_stateful

VERSION = 1


class Epoch:
    """How one epoch began and how far it has come.

    Args:
        random: The states of the generators when it began.
        seeded: Whether PyTorch's iterator drew the workers' seed then; persistent workers keep
            theirs.
        sampler: The sampler's own state then.
        done: The batches that were yielded before this process went on with it.
    """

    def __init__(
        self, random: dict[str, Any], *, seeded: bool, sampler: Any, done: "Done | None" = None
    ) -> None:
        self.random = random
        self.seeded = seeded
        self.sampler = sampler
        self.done = done or Done(0)
        self.finished = False
        # States of an iterable dataset that has some: of each worker, after what it has yielded.
        self.states: dict[int, bytes] = {}
        self.last_worker = -1
        # Takes the state where the dataset is iterated in this process.
        self.take_state: Callable[[], bytes | None] | None = None

    def count(self, number: int, state: tuple[int, bytes] | None) -> None:
        """Count a batch that was yielded, or that raised when it was asked for.

        Args:
            number: How many batches the sampler drew before this one in this process.
            state: The worker and the state of its dataset after the batch, if it has one.
        """
        self.done.add(number)
        if state is not None:
            self.last_worker = state[0]
            self.states[state[0]] = state[1]

    def dataset_states(self) -> dict[str, Any] | None:
        """Return the states of the dataset, or None if it has none."""
        if self.take_state is not None:
            state = self.take_state()
            return None if state is None else {"last_worker": -1, "states": {"0": state}}
        if not self.states:
            return None
        states = {str(worker): state for worker, state in self.states.items()}
        return {"last_worker": self.last_worker, "states": states}


def random_states(loader: Any) -> dict[str, torch.Tensor]:
    """Return the states of all generators from which an epoch of the loader draws."""
    states = {"global": torch.get_rng_state()}
    for name, generator in _generators(loader).items():
        states[name] = generator.get_state()
    return states


@contextmanager
def random_as(loader: Any, states: dict[str, torch.Tensor]) -> Iterator[None]:
    """Set the generators; the global one is put back afterwards, since it is not the loader's."""
    outside = torch.get_rng_state()
    try:
        torch.set_rng_state(states["global"])
        set_own(loader, states)
        yield
    finally:
        torch.set_rng_state(outside)


def set_own(loader: Any, states: dict[str, torch.Tensor]) -> None:
    """Set the loader's and its sampler's own generators."""
    for name, generator in _generators(loader).items():
        if name in states:
            generator.set_state(states[name])


def _generators(loader: Any) -> dict[str, torch.Generator]:
    found = {"loader": loader.generator}
    batch_sampler = loader.batch_sampler
    found["batch_sampler"] = getattr(batch_sampler, "generator", None)
    found["sampler"] = getattr(loader.sampler, "generator", None)
    found["inner_sampler"] = getattr(getattr(batch_sampler, "sampler", None), "generator", None)
    return {name: each for name, each in found.items() if isinstance(each, torch.Generator)}


def sampler_state(loader: Any) -> Any:
    """Return the state of a sampler that has one of its own, else None."""
    sampler = _stateful_sampler(loader)
    return None if sampler is None else sampler.state_dict()


def load_sampler_state(loader: Any, state: Any) -> None:
    """Give the sampler its state back."""
    sampler = _stateful_sampler(loader)
    if state is not None and sampler is not None:
        sampler.load_state_dict(state)


def _stateful_sampler(loader: Any) -> Any:
    """The sampler of batches if it has a state, or else the one from which it draws."""
    of_batches = loader._index_sampler
    for sampler in (of_batches, getattr(of_batches, "sampler", None)):
        if is_stateful(sampler):
            return sampler
    return None


def has_drawn_nothing(state: dict[str, Any], loader: Any) -> bool:
    """Whether an epoch had begun, and its sampler had drawn nothing from PyTorch's own generator.

    Without workers it draws when the first batch is asked for: then so does the loader that goes on
    with the epoch, at that place in the user's own use of the generator.
    """
    return (
        not state["batches_yielded"]
        and not state["num_workers"]
        and loader.generator is None
        and not isinstance(loader.dataset, IterableDataset)
    )


class Done:
    """Which batches of an epoch, in the sampler's order, have been yielded.

    Args:
        total: How many.
        ahead: The positions of those that came before their turn, as ``in_order=False`` allows.
    """

    def __init__(self, total: int, ahead: Iterable[int] = ()) -> None:
        self._ahead = set(ahead)
        # All before this position have been yielded.
        self._next = total - len(self._ahead)
        self._first, self._skipped = self._next, sorted(self._ahead)

    @property
    def total(self) -> int:
        """How many batches have been yielded."""
        return self._next + len(self._ahead)

    @property
    def ahead(self) -> list[int]:
        """The positions of those that came before their turn."""
        return sorted(self._ahead)

    def add(self, number: int) -> None:
        """Note one of the batches that :meth:`left` leaves, by its number among them."""
        position = self._first + number
        for each in self._skipped:
            position += each <= position
        self._ahead.add(position)
        while self._next in self._ahead:
            self._ahead.remove(self._next)
            self._next += 1

    def left(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Return the batches of an epoch that had not been yielded when it was gone on with."""
        left = itertools.islice(enumerate(batches), self._first, None)
        skipped = set(self._skipped)
        return (each for at, each in left if at not in skipped)


class SkippingSampler:
    """A sampler without batches that have been yielded, for one epoch."""

    def __init__(self, sampler: Any, done: Done) -> None:
        self.sampler, self.done = sampler, done

    def __iter__(self) -> Iterator[Any]:
        return self.done.left(iter(self.sampler))

    def __len__(self) -> int:
        return len(self.sampler)


def to_dict(epoch: Epoch | None, loader: Any) -> dict[str, Any]:
    """Return the state of a loader as tensors, numbers and texts."""
    state: dict[str, Any] = {
        "version": VERSION,
        "num_workers": loader.num_workers,
        "batch_size": loader.batch_size,
        "samples": samples_of(loader),
        "in_order": loader.in_order,
    }
    if epoch is None or epoch.finished:
        # Between epochs the next one begins as it would have begun.
        return state | {
            "batches_yielded": 0,
            "yielded_ahead": [],
            "in_epoch": False,
            # Persistent workers that run draw no seed for the next epoch.
            "seeded": loader._iterator is None,
            "random": {k: v for k, v in random_states(loader).items() if k != "global"},
            "sampler": sampler_state(loader),
        }
    return state | {
        "batches_yielded": epoch.done.total,
        "yielded_ahead": epoch.done.ahead,
        "dataset": epoch.dataset_states(),
        "in_epoch": True,
        "seeded": epoch.seeded,
        "random": dict(epoch.random),
        "sampler": epoch.sampler,
    }


def samples_of(loader: Any) -> int | None:
    """How many samples a map-style dataset has; None if it does not say, or is iterable."""
    if isinstance(loader.dataset, IterableDataset):
        return None
    try:
        return len(loader.dataset)
    except (NotImplementedError, TypeError):
        return None


def _batches_of(loader: Any) -> int | None:
    """How many batches an epoch of a map-style dataset has, if the sampler says."""
    if isinstance(loader.dataset, IterableDataset):
        return None
    try:
        return len(loader)
    except (NotImplementedError, TypeError):
        return None


def check_fits(state: dict[str, Any], loader: Any) -> None:
    """Check that a state is of a loader like this one.

    Raises:
        InvalidArgumentError: The batch size, the dataset or the number of workers is another.
    """
    iterable = isinstance(loader.dataset, IterableDataset)
    if iterable and state.get("num_workers") != loader.num_workers:
        raise InvalidArgumentError(
            f"the state is of {state.get('num_workers')} workers and this loader has "
            f"{loader.num_workers}: an iterable dataset is divided among its workers, so the "
            "number must be the same"
        )
    if iterable and _came_in_any_order(state, loader):
        raise InvalidArgumentError(
            f"with in_order=False and num_workers={loader.num_workers} it is not known which "
            "batches of an iterable dataset were yielded; use in_order=True, or give the dataset "
            "state_dict() and load_state_dict()"
        )
    batches = _batches_of(loader)
    if batches is not None and state["batches_yielded"] > batches:
        raise InvalidArgumentError(
            f"the state has {state['batches_yielded']} batches yielded, and an epoch of this "
            f"loader has {batches}"
        )
    own = {"batch_size": loader.batch_size, "samples": samples_of(loader)}
    for name, value in own.items():
        # States of earlier versions do not say.
        if state["in_epoch"] and state.get(name, value) != value:
            raise InvalidArgumentError(
                f"the state is of a loader with {name}={state[name]} and this one has "
                f"{name}={value}: batches are counted, so it can only go on with the same"
            )


def _came_in_any_order(state: dict[str, Any], loader: Any) -> bool:
    if loader.num_workers < 2 or not state["batches_yielded"] or state.get("dataset") is not None:
        return False
    return not (loader.in_order and state.get("in_order", True))


def states_of(state: dict[str, Any], workers: int) -> tuple[dict[int, bytes], int]:
    """Return the states of the dataset by worker, and the worker whose turn it is."""
    saved = state.get("dataset")
    if saved is None:
        return {}, 0
    states = {int(worker): each for worker, each in saved["states"].items()}
    return states, (saved["last_worker"] + 1) % max(1, workers)


def check(state: Any) -> None:
    """Check a state that is to be loaded.

    Raises:
        InvalidArgumentError: It is not one of :func:`to_dict`, or does not fit the loader.
    """
    if not isinstance(state, dict) or state.get("version") != VERSION:
        got = f"a {type(state).__qualname__}"
        if isinstance(state, dict):
            got = f"version {state['version']!r}" if "version" in state else "a dict without one"
        raise InvalidArgumentError(
            f"the state is not one of vramkit.DataLoader.state_dict(), which has version "
            f"{VERSION}: got {got}"
        )
    missing = {"batches_yielded", "in_epoch", "seeded", "random", "sampler"} - state.keys()
    if missing:
        raise InvalidArgumentError(f"the state has no {', '.join(sorted(missing))}")
    random = state["random"]
    if not isinstance(random, dict) or (state["in_epoch"] and "global" not in random):
        raise InvalidArgumentError(
            "random must hold the states of the random generators, 'global' among them, got "
            f"{list(random) if isinstance(random, dict) else type(random).__qualname__}"
        )
    if not isinstance(state["batches_yielded"], int) or state["batches_yielded"] < 0:
        raise InvalidArgumentError(
            f"batches_yielded must be a number of batches, got {state['batches_yielded']!r}"
        )
    ahead = state.get("yielded_ahead", [])
    if not isinstance(ahead, list) or len(set(ahead)) > state["batches_yielded"]:
        raise InvalidArgumentError(
            f"yielded_ahead must list some of the {state['batches_yielded']} batches yielded, got "
            f"{ahead!r}"
        )
