"""States of iterable datasets that have one, by the convention of torchdata.

The iterator that a dataset returns, or else the dataset itself, has ``state_dict()`` and
``load_state_dict()``. The state is taken in the process that iterates, after each batch there.
"""

import pickle
from typing import Any


def is_stateful(thing: object) -> bool:
    """Whether it has a state that can be taken and given back."""
    return callable(getattr(thing, "state_dict", None)) and callable(
        getattr(thing, "load_state_dict", None)
    )


def take(fetcher: Any) -> bytes | None:
    """Return the state of what a fetcher of PyTorch's iterates, pickled, or None without one."""
    owner = _owner(fetcher)
    return None if owner is None else pickle.dumps(owner.state_dict())


def give_back(state: bytes, fetcher: Any) -> None:
    """Give what a new fetcher iterates its state back.

    A dataset is iterated anew then: it may look at its state when its iteration begins.
    """
    owner = _owner(fetcher)
    if owner is None:
        return
    owner.load_state_dict(pickle.loads(state))
    if owner is fetcher.dataset:
        fetcher.dataset_iter = iter(fetcher.dataset)


def _owner(fetcher: Any) -> Any:
    iterator = getattr(fetcher, "dataset_iter", None)
    if iterator is None:
        return None
    if is_stateful(iterator):
        return iterator
    dataset = getattr(fetcher, "dataset", None)
    return dataset if is_stateful(dataset) else None
