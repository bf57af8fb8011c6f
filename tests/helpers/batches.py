"""Compares what two loaders deliver, bit for bit."""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader as TorchDataLoader

import vramkit


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements, in order."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if not plain.numel():
        return b""
    # A single element may have any stride and is contiguous.
    flat = plain.as_strided((plain.numel(),), (1,))
    return flat.view(torch.uint8).numpy().tobytes()


def assert_same(ours: Any, theirs: Any, where: str = "batch") -> None:
    """Assert that two batches are the same: types, structure, dtypes, shapes and bits."""
    assert type(ours) is type(theirs), f"{where}: {type(ours)} is not {type(theirs)}"
    if isinstance(theirs, torch.Tensor):
        _assert_same_tensors(ours, theirs, where)
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        assert ours.tobytes() == theirs.tobytes(), where
    elif isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, Sequence) and not isinstance(theirs, (str, bytes)):
        assert len(ours) == len(theirs), where
        for position, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(our, their, f"{where}[{position}]")
    elif dataclasses.is_dataclass(theirs):
        for field in dataclasses.fields(theirs):
            name = field.name
            assert_same(getattr(ours, name), getattr(theirs, name), f"{where}.{name}")
    elif hasattr(theirs, "__dict__") and not isinstance(theirs, type):
        assert_same(vars(ours), vars(theirs), where)
    else:
        assert ours == theirs, where


def _assert_same_tensors(ours: torch.Tensor, theirs: torch.Tensor, where: str) -> None:
    for name in ("dtype", "shape", "layout", "device", "requires_grad"):
        assert getattr(ours, name) == getattr(theirs, name), f"{where}.{name}"
    if theirs.layout is not torch.strided:
        assert torch.equal(ours.to_dense(), theirs.to_dense()), where
        return
    if theirs.is_contiguous():
        assert ours.is_contiguous(), where
    assert bits(ours) == bits(theirs), where


def seed_all(seed: int) -> None:
    """Seed every generator that datasets draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def record(
    kind: Callable[..., Any], dataset: Any, *, epochs: int = 1, seed: int = 3, **options: Any
) -> list[Any]:
    """What a loader of that kind does: batches or the exception's type, and the generator after."""
    seed_all(seed)
    made = {name: make() for name, make in options.items() if name in _MADE and callable(make)}
    events: list[Any] = []
    try:
        loader = kind(dataset, **(options | made))
        for _ in range(epochs):
            events.append("epoch")
            events.extend(loader)
            events.append(torch.get_rng_state())
            if isinstance(made.get("generator"), torch.Generator):
                events.append(made["generator"].get_state())
    except Exception as err:  # noqa: BLE001 - both loaders have to raise the same
        events.append((type(err).__name__, "raised"))
    return events


# Options that are given as functions, because each loader needs its own.
_MADE = ("generator", "sampler", "batch_sampler")


def assert_parity(dataset: Any, *, epochs: int = 1, **options: Any) -> list[Any]:
    """Assert that vramkit's loader does what PyTorch's does; returns what that was."""
    theirs = record(TorchDataLoader, dataset, epochs=epochs, **options)
    ours = record(vramkit.DataLoader, dataset, epochs=epochs, **options)
    assert_same(ours, theirs, "epochs")
    return theirs
