"""Collating in a worker gives what default_collate gives."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from helpers import datasets as d
from helpers.batches import assert_parity, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from vramkit._core import stream_copy
from vramkit.loader._arena import Arena
from vramkit.loader._slot_writer import SlotWriter
from vramkit.loader._stream_collate import StreamingCollate

LARGE = 700


def _leaf(kind: str, number: int) -> Any:
    made = {
        "tensor": lambda: torch.full((LARGE,), float(number)),
        "double": lambda: torch.full((LARGE,), float(number), dtype=torch.float64),
        "longer": lambda: torch.full((LARGE + 1,), float(number)),
        "strided": lambda: torch.full((LARGE, 2), float(number))[:, 0],
        "transposed": lambda: torch.arange(LARGE * 2.0).view(LARGE, 2).t(),
        "complex": lambda: torch.full((LARGE,), number * 1j),
        "conjugate": lambda: torch.full((LARGE,), number * 1j).conj(),
        "flags": lambda: torch.ones(3000, dtype=torch.bool),
        "array": lambda: np.full(LARGE, float(number)),
        "array32": lambda: np.full(LARGE, number, np.float32),
        "swapped": lambda: np.full(LARGE, number, ">f4"),
        "fortran": lambda: np.asfortranarray(np.ones((30, 30))),
        "small": lambda: torch.tensor(float(number)),
        "int": lambda: number,
        "float": lambda: float(number),
        "scalar": lambda: np.float32(number),
        "text": lambda: str(number),
        "none": lambda: None,
        "tuple": lambda: (torch.full((LARGE,), number), number),
        "short": lambda: (torch.full((LARGE,), number),),
        "list": lambda: [torch.full((LARGE,), number), number],
        "dict": lambda: {"a": torch.full((LARGE,), number), "b": number},
        "more": lambda: {"b": number, "a": torch.full((LARGE,), number), "c": 1},
        "point": lambda: d.Point(torch.full((LARGE,), number), number),
        "empty": lambda: torch.empty(0, 5),
        "nothing": lambda: (),
    }
    return made[kind]()


KINDS = ["tensor", "double", "longer", "strided", "transposed", "complex", "conjugate", "flags"]
KINDS += ["array", "array32", "swapped", "fortran", "small", "int", "float", "scalar", "text"]
KINDS += ["none", "tuple", "short", "list", "dict", "more", "point", "empty", "nothing"]


def _outcome(collate: Any, samples: list[Any]) -> Any:
    try:
        return collate(samples)
    except Exception as err:  # noqa: BLE001 - both have to raise the same
        return type(err).__name__


def _assert_streams(samples: list[Any]) -> None:
    with Arena(1 << 30) as arena:
        lease = arena.lease()
        writer = SlotWriter(os.dup(arena.fd), 1 << 30, stream_copy)
        writer.begin(lease.slot.index, 0)
        stream = StreamingCollate(writer, default_collate)
        ours = _outcome(lambda each: stream(iter(each), len(each)), samples)
        assert_same(ours, _outcome(default_collate, samples))
        writer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_samples(kind: str) -> None:
    _assert_streams([_leaf(kind, number) for number in range(3)])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 4),
    st.sampled_from(KINDS),
)
def test_a_sample_that_differs(kinds: list[str], count: int, at: int, other: str) -> None:
    samples = [tuple(_leaf(kind, number) for kind in kinds) for number in range(count)]
    if at < count:
        samples[at] = (*samples[at][:-1], _leaf(other, 7))
    _assert_streams(samples)


def test_one_tensor_several_times() -> None:
    tensor = torch.ones(LARGE)
    _assert_streams([(tensor, tensor, {"again": tensor})] * 3)


@pytest.mark.parametrize("at", [0, 2])
def test_gradients_are_pytorchs_error(at: int) -> None:
    samples = [torch.ones(LARGE) for _ in range(4)]
    samples[at].requires_grad_()
    assert_parity(d.Listed(samples), batch_size=4, num_workers=1)
