"""What goes through Packer and Packed comes out the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.batches import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from vramkit._core import stream_copy
from vramkit.loader._arena import Arena
from vramkit.loader._packing import Packed, Packer
from vramkit.loader._slot_writer import SlotWriter

_DTYPES = [torch.float32, torch.bool, torch.complex64, torch.bfloat16, torch.float8_e4m3fn]
_DTYPES += [torch.uint8, torch.int64, torch.uint16]


@st.composite
def _tensors(draw: Any) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(_DTYPES))
    tensor = torch.randint(0, 2, shape).to(dtype)
    if tensor.dim() > 1 and draw(st.booleans()):
        order = draw(st.permutations(range(tensor.dim())))
        tensor = tensor.permute(order)
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor[draw(st.integers(0, 2)) :: draw(st.integers(1, 2))]
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    return tensor


_batches = st.recursive(
    _tensors() | st.integers() | st.text(max_size=3) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(_batches, min_size=1, max_size=3))
def test_batches_travel(batches: list[Any]) -> None:
    with Arena(1 << 30) as arena:
        writer = SlotWriter(arena.fd, 1 << 20, stream_copy)
        arrived = []
        for batch in batches:
            lease = arena.lease()
            writer.begin(lease.slot.index, lease.slot.capacity)
            content = Packer(writer).pack(batch)
            if writer.capacity:
                arena.map(lease.slot, writer.capacity)
            arrived.append(Packed(lease, content, writer.used_bytes).unpack())
        assert_same(arrived, batches)


@pytest.mark.parametrize("columns", [1, 3])
def test_memory_formats_are_kept(columns: int) -> None:
    image = torch.rand(2, 3, 4, columns).to(memory_format=torch.channels_last)
    with Arena(1 << 30) as arena:
        lease = arena.lease()
        writer = SlotWriter(arena.fd, 1 << 20, stream_copy)
        writer.begin(lease.slot.index, 0)
        content = Packer(writer).pack(image)
        arena.map(lease.slot, writer.capacity)
        arrived = Packed(lease, content, writer.used_bytes).unpack()
    assert_same(arrived, image)
    assert arrived.is_contiguous(memory_format=torch.channels_last)
