"""Who is measured in a case: vramkit, PyTorch, and the peers that can take part."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from benchmarks._shared.harness import say
from benchmarks.loader.cases import Case
from benchmarks.loader.contestants import Maker, own_loader, torch_loader
from benchmarks.loader.peers import PEERS

# What a peer of another version raises where it does not fit this torch or these data.
_UNFIT = (AttributeError, ImportError, NotImplementedError, OSError, RuntimeError, TypeError)


@contextlib.contextmanager
def running(
    make: Maker, dataset: Any, options: dict[str, Any], *, on_gpu: bool
) -> Iterator[Iterator[Any]]:
    """Make a loader and end it: yields its endless batches."""
    loader, batches = make(dataset, options, on_gpu=on_gpu)
    try:
        yield batches
    finally:
        batches.close()
        del loader, batches
        # Workers end with their loader, which may be part of a cycle.
        gc.collect()


def contest(case: Case, dataset: Any, *, on_gpu: bool) -> tuple[dict[str, Maker], dict[str, str]]:
    """Return who takes part, and why each of the others that the case names does not."""
    makers: dict[str, Maker] = {"vramkit": own_loader, "torch": torch_loader}
    absent: dict[str, str] = {}
    for name in case.peers:
        peer = PEERS[name]
        reason = peer.reason_absent(on_gpu=on_gpu) or reason_unfit(
            peer.make, dataset, case.options, on_gpu=on_gpu
        )
        if reason is None:
            makers[name] = peer.make
        else:
            say(f"{case.name}: without {name}, which {reason}")
            absent[name] = reason
    return makers, absent


def reason_unfit(make: Maker, dataset: Any, options: dict[str, Any], *, on_gpu: bool) -> str | None:
    """Take one batch of a peer; return the error that comes instead of it."""
    try:
        with running(make, dataset, options, on_gpu=on_gpu) as batches:
            next(batches)
    except _UNFIT as err:
        return f"raises {type(err).__name__}: {err}"
    return None


def absence(absent: dict[str, str]) -> dict[str, str]:
    """Return the setting that tells of peers that did not take part."""
    told = "; ".join(f"{name} {reason}" for name, reason in absent.items())
    return {"peers_absent": told} if told else {}
