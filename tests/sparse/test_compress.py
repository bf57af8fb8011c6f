"""compress chooses the smallest layout and keeps every element."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vramkit.sparse
from vramkit.errors import ArgumentTypeError


@pytest.fixture(autouse=True)
def _beta() -> None:
    # torch says once in a process that CSR is in beta.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1).to_sparse_csr()


def _bytes_of(tensor: torch.Tensor) -> int:
    if tensor.layout is torch.sparse_coo:
        return tensor.indices().nbytes + tensor.values().nbytes
    if tensor.layout is torch.sparse_csr:
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        return sum(part.nbytes for part in parts)
    return tensor.nbytes


@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]),
)
def test_keeps_every_element_in_the_measured_bytes(
    shape: list[int], density: float, dtype: torch.dtype
) -> None:
    dense = ((torch.rand(shape) + 1) * (torch.rand(shape) < density)).to(dtype)
    found = vramkit.sparse.compress(dense)
    back = found.tensor if found.layout == "dense" else found.tensor.to_dense()
    assert torch.equal(back, dense)
    assert _bytes_of(found.tensor) == found.bytes_by_layout[found.layout]
    assert found.bytes_by_layout[found.layout] == min(found.bytes_by_layout.values())
    assert found.saved_bytes == dense.nbytes - _bytes_of(found.tensor)


def test_says_what_it_saves() -> None:
    wide = torch.zeros(2, 100_000)
    wide[0, 7] = 1
    assert str(vramkit.sparse.compress(wide)) == "coo: 20 B, saves 781.2 KiB of 781.3 KiB"
    text = str(vramkit.sparse.compress(torch.ones(16, 16)))
    assert text == "dense: 1.0 KiB; sparse would take 2.1 KiB"


def test_sparse_tensors_are_taken_too() -> None:
    eye = torch.eye(100)
    for given_tensor in (eye.to_sparse(), eye.to_sparse_csr()):
        found = vramkit.sparse.compress(given_tensor)
        assert found.layout == "csr"
        assert torch.equal(found.tensor.to_dense(), eye)


def test_a_sparse_tensor_is_not_made_dense() -> None:
    indices, values = [[5, 5, 7], [9, 9, 1]], [1.0, 2.0, 0.0]
    wide = torch.sparse_coo_tensor(indices, values, (10**7, 10**7), check_invariants=True)
    found = vramkit.sparse.compress(wide)
    assert (found.layout, found.bytes_by_layout["coo"]) == ("coo", 20)
    assert found.tensor.indices().tolist() == [[5], [9]]
    assert found.tensor.values().tolist() == [3.0]


@given(shape=st.lists(st.integers(0, 6), min_size=2, max_size=4), dense_dims=st.integers(0, 1))
def test_sparse_tensors_with_zeros_and_dense_dimensions(shape: list[int], dense_dims: int) -> None:
    dense = (torch.rand(shape) < 0.1) * torch.ones(shape)
    full = torch.ones(shape).to_sparse(len(shape) - dense_dims)
    given_tensor = torch.sparse_coo_tensor(
        full.indices(),
        dense[tuple(full.indices())],
        shape,
        is_coalesced=True,
        check_invariants=True,
    )
    found = vramkit.sparse.compress(given_tensor)
    back = found.tensor if found.layout == "dense" else found.tensor.to_dense()
    assert torch.equal(back, dense)
    assert found.bytes_by_layout == vramkit.sparse.compress(dense).bytes_by_layout
    assert _bytes_of(found.tensor) == found.bytes_by_layout[found.layout]


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda: torch.tensor(1.0), "layout torch.strided of 0 dimensions"),
        (lambda: [1.0], "got list"),
        (lambda: torch.zeros(2, 2, device="meta"), "a tensor on meta, which has no values"),
        (lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8), "a quantized"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
    ],
)
def test_what_it_does_not_take(value: Callable[[], Any], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=text):
        vramkit.sparse.compress(value())
