"""Rows that the GPU copies straight from registered host memory, against plain indexing."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vramkit import MemoryPool
from vramkit._core import (
    Piece,
    Plan,
    Segment,
    has_batched_copies,
    host_register,
    host_unregister,
)
from vramkit.errors import InvalidArgumentError

pytestmark = pytest.mark.gpu

PAGE = 4096


@pytest.fixture(autouse=True)
def _batched_copies(_clean_device: None) -> None:
    if not has_batched_copies():
        pytest.skip("the CUDA driver has no batched copies")


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def registered() -> Iterator[ExitStack]:
    """What is registered in it stays so until the GPU is done."""
    with ExitStack() as stack:
        yield stack
        torch.cuda.synchronize()


@contextmanager
def whole_pages(address: int, size_bytes: int) -> Iterator[None]:
    """Registers the pages that the memory has a part of."""
    begin, end = address // PAGE * PAGE, -(-(address + size_bytes) // PAGE) * PAGE
    host_register(begin, end - begin, 0)
    try:
        yield
    finally:
        host_unregister(begin)


def random_bytes(
    random: np.random.Generator, registered: ExitStack, rows: int, row_bytes: int, offset: int = 16
) -> NDArray[np.uint8]:
    """A registered array that shares no page with other memory and begins within one."""
    size = rows * row_bytes
    memory = np.empty(size + offset + 2 * PAGE, np.uint8)
    at = -memory.ctypes.data % PAGE + offset
    array = memory[at : at + size]
    array[:] = random.integers(0, 256, size, np.uint8)
    registered.enter_context(whole_pages(array.ctypes.data, size))
    return array.reshape(rows, row_bytes)


def piece(*parts: Any) -> Piece:
    """The rows of arrays of one width and stride, one after the other."""
    segments, rows = [], 0
    for part in parts:
        segments.append(Segment(part.__array_interface__["data"][0], rows, len(part)))
        rows += len(part)
    return Piece(segments, parts[0][0].nbytes, parts[0].strides[0])


def copied(
    pieces: list[Piece], indices: NDArray[np.int64], stream: torch.cuda.Stream | None = None
) -> list[NDArray[np.uint8]]:
    """The rows, by way of the GPU and a side stream; nothing around them was written."""
    stream = stream or torch.cuda.Stream()
    count, margin = len(indices), 64
    with torch.cuda.stream(stream):
        rows = [
            torch.full((count * each.row_bytes + 2 * margin,), 7, dtype=torch.uint8, device="cuda")
            for each in pieces
        ]
    destinations = [each.data_ptr() + margin for each in rows]
    Plan(pieces).copy_to_device(destinations, indices.ctypes.data, count, 0, stream.cuda_stream)
    stream.synchronize()
    for each in rows:
        assert bool((each[:margin] == 7).all())
        assert bool((each[-margin:] == 7).all())
    return [
        each[margin:-margin].cpu().numpy().reshape(count, made.row_bytes)
        for each, made in zip(rows, pieces, strict=True)
    ]


@pytest.mark.parametrize("row_bytes", [1, 16, 100, 4096, 150_528, 1 << 20])
def test_random_rows_are_numpys(
    row_bytes: int, random: np.random.Generator, registered: ExitStack
) -> None:
    array = random_bytes(random, registered, 100, row_bytes)
    indices = random.integers(0, 100, 64)
    np.testing.assert_array_equal(copied([piece(array)], indices)[0], array[indices])


def test_consecutive_rows_are_numpys(random: np.random.Generator, registered: ExitStack) -> None:
    array = random_bytes(random, registered, 5000, 1000)
    for indices in (np.arange(5000), np.r_[4000:5000, 17, 17, 0:3000, 4999]):
        np.testing.assert_array_equal(copied([piece(array)], indices)[0], array[indices])


def test_more_rows_than_one_call_takes(random: np.random.Generator, registered: ExitStack) -> None:
    array = random_bytes(random, registered, 20_000, 64)
    indices = random.permutation(20_000)
    np.testing.assert_array_equal(copied([piece(array)], indices)[0], array[indices])


def test_strided_rows(random: np.random.Generator, registered: ExitStack) -> None:
    array = random_bytes(random, registered, 300, 5000)[:, 40:3040]
    indices = random.integers(0, 300, 200)
    np.testing.assert_array_equal(copied([piece(array)], indices)[0], array[indices])


def test_segments_that_are_registered_apart(
    random: np.random.Generator, registered: ExitStack
) -> None:
    parts = [random_bytes(random, registered, rows, 3000, 8 * rows) for rows in (100, 1, 300)]
    for indices in (np.arange(401), random.integers(0, 401, 256)):
        expected = np.concatenate(parts)[indices]
        np.testing.assert_array_equal(copied([piece(*parts)], indices)[0], expected)


def test_neighbours_in_memory_that_are_registered_apart(random: np.random.Generator) -> None:
    memory = np.empty(7 * PAGE, np.uint8)
    at = -memory.ctypes.data % PAGE
    pages = memory[at : at + 6 * PAGE].reshape(6, PAGE)
    pages[:] = random.integers(0, 256, pages.shape, np.uint8)
    parts = [pages[:2], pages[2:]]
    with ExitStack() as registered:
        for part in parts:
            registered.enter_context(whole_pages(part.ctypes.data, part.nbytes))
        np.testing.assert_array_equal(copied([piece(*parts)], np.arange(6))[0], pages)


def test_several_arrays_at_once(random: np.random.Generator, registered: ExitStack) -> None:
    arrays = [random_bytes(random, registered, 500, size) for size in (8, 12_288, 77)]
    indices = random.integers(0, 500, 300)
    rows = copied([piece(array) for array in arrays], indices)
    for ours, array in zip(rows, arrays, strict=True):
        np.testing.assert_array_equal(ours, array[indices])


def test_rows_of_a_tensor(random: np.random.Generator, registered: ExitStack) -> None:
    # In pages of its own: a copy to a neighbour would be refused otherwise.
    pages = mmap.mmap(-1, 64 * 3 * 128 * 128 * 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(pages, dtype=torch.float32).normal_().view(64, 3, 128, 128)
    registered.enter_context(whole_pages(tensor.data_ptr(), tensor.nbytes))
    indices = random.integers(0, 64, 32)
    rows = copied([piece(tensor.numpy())], indices)[0].view(np.float32)
    assert torch.equal(torch.from_numpy(rows).view(32, 3, 128, 128), tensor[indices])


def test_copies_come_after_the_streams_earlier_work(
    random: np.random.Generator, registered: ExitStack
) -> None:
    array = random_bytes(random, registered, 100, 10_000)
    indices = random.integers(0, 100, 64)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # `copied` fills the destination on the same stream, after this.
        torch.cuda._sleep(50_000_000)
    np.testing.assert_array_equal(copied([piece(array)], indices, stream)[0], array[indices])


def test_rows_into_the_memory_of_a_pool(
    pool: MemoryPool, random: np.random.Generator, registered: ExitStack
) -> None:
    array = random_bytes(random, registered, 100, 150_528)
    indices = np.r_[random.integers(0, 100, 20), 30:90]
    with pool:
        rows = copied([piece(array)], indices)[0]
    np.testing.assert_array_equal(rows, array[indices])


def test_what_is_refused_is_not_copied(random: np.random.Generator, registered: ExitStack) -> None:
    array = random_bytes(random, registered, 10, 100)
    plan, stream = Plan([piece(array)]), torch.cuda.Stream()
    rows = torch.full((300,), 7, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    to, good, bad = rows.data_ptr(), np.array([0, 1, 2]), np.array([0, 10, 2])
    with pytest.raises(InvalidArgumentError, match="index 10 at position 1 is out of range"):
        plan.copy_to_device([to], bad.ctypes.data, 3, 0, stream.cuda_stream)
    default = torch.cuda.default_stream().cuda_stream
    with pytest.raises(InvalidArgumentError, match="on the default stream"):
        plan.copy_to_device([to], good.ctypes.data, 3, 0, default)
    with pytest.raises(InvalidArgumentError, match="there is no CUDA device 999"):
        plan.copy_to_device([to], good.ctypes.data, 3, 999, stream.cuda_stream)
    torch.cuda.synchronize()
    assert bool((rows == 7).all())
