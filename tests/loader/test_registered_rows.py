"""Which memory of a dataset is registered with CUDA, and when it is given back."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mappings import tensor_with_own_mapping
from torch.utils.data import TensorDataset

from vramkit.errors import InvalidArgumentError, SystemCallError
from vramkit.loader import _registered_rows as module
from vramkit.loader._address_space import mapping_of, mappings
from vramkit.loader._arrays import find_arrays
from vramkit.loader._columns import Column, columns_of
from vramkit.loader._registered_rows import NotRegisteredError, RegisteredRows, ranges_of

PAGE = mmap.PAGESIZE
ROW = module.ROW_FROM_BYTES
# As many rows as make an array large enough.
ROWS = module.OWN_PAGES_FROM_BYTES // ROW + 1


class _Driver:
    """Keeps account of what is registered."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, bool]] = {}
        self.refuses = False

    def register(self, address: int, size_bytes: int, device: int, *, read_only: bool) -> None:
        assert address % PAGE == size_bytes % PAGE == device == 0
        if self.refuses:
            raise SystemCallError(1, "the driver refuses")
        if any(address < at + size and at < address + size_bytes for at, (size, _) in self.items()):
            raise InvalidArgumentError("registered already")
        self.held[address] = (size_bytes, read_only)

    def items(self) -> Any:
        return self.held.items()

    def unregister(self, address: int) -> None:
        del self.held[address]


@pytest.fixture(autouse=True)
def full_heap() -> Iterator[None]:
    """The C library serves large blocks from its heap while that has room, mappings after that."""
    taken = [large()]
    while _path(taken[-1]) == "[heap]":
        taken.append(large())
    yield
    taken.clear()


def _path(tensor: torch.Tensor) -> str:
    found = mapping_of(tensor.data_ptr(), tensor.data_ptr() + 1, mappings())
    assert found is not None
    return found.path


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> _Driver:
    made = _Driver()
    monkeypatch.setattr(module, "host_register", made.register)
    monkeypatch.setattr(module, "host_unregister", made.unregister)
    monkeypatch.setattr(module, "has_batched_copies", lambda: True)
    return made


def columns(*tensors: torch.Tensor) -> list[Column]:
    return columns_of(find_arrays(TensorDataset(*tensors)))


def large(rows: int = ROWS) -> torch.Tensor:
    return torch.empty(rows, ROW, dtype=torch.uint8)


def rows_of(found: list[Column], bound_bytes: int = 1 << 32) -> RegisteredRows:
    made = RegisteredRows(found, 0, bound_bytes)
    made.begin()
    return made


def test_large_rows_are_registered_as_whole_pages_and_given_back(driver: _Driver) -> None:
    images, labels = large(), torch.zeros(ROWS, dtype=torch.int64)
    rows = rows_of(columns(labels, images))
    assert rows.positions == [1]
    ((address, (size, read_only)),) = driver.items()
    assert address <= images.data_ptr() < address + PAGE
    assert images.data_ptr() + images.nbytes <= address + size < images.data_ptr() + size + PAGE
    assert (rows.reason, rows.size_bytes, read_only) == ("", size, False)
    rows.begin()
    rows.release("closed")
    assert (rows.reason, rows.size_bytes, driver.held) == ("closed", 0, {})


def test_the_whole_storage_of_a_part_is_registered(driver: _Driver) -> None:
    images = large(2 * ROWS)
    rows = rows_of(columns(images[:5]))
    assert rows.size_bytes >= images.nbytes
    array = np.empty((2 * ROWS, ROW), np.uint8)
    (segment,) = _array_segments(array[7:9])
    (found,) = ranges_of([segment])
    assert found.begin <= array.ctypes.data
    assert found.end >= array.ctypes.data + array.nbytes
    rows.release("")


def _sources() -> dict[str, Any]:
    """Rows in memory of which each is a part, and that memory, or None if it is unknown."""
    array = np.empty((2 * ROWS, ROW), np.uint8)
    tensor = large(2 * ROWS)
    mapped = mmap.mmap(-1, 2 * ROWS * ROW, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    of_map = np.frombuffer(mapped, np.uint8).reshape(2 * ROWS, ROW)
    of_view = np.frombuffer(memoryview(mapped)[ROW:], np.uint8).reshape(-1, ROW)
    whole = (array.ctypes.data, array.nbytes)
    every = (tensor.data_ptr(), tensor.nbytes)
    pages = (of_map.ctypes.data, of_map.nbytes)
    overlapping = np.empty((2 * ROWS, ROW), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        overlapping.strides = (ROW // 2, 1)
    taken = bytearray(2 * ROWS * ROW)
    apart = tensor_with_own_mapping(2 * ROWS * ROW).view(2 * ROWS, ROW)
    return {
        "tensor with a mapping of its own": (apart, (apart.data_ptr(), apart.nbytes)),
        "part of a mapping of its own": (torch.from_dlpack(apart[1:-1]), None),
        "array": (array[3 : ROWS + 5], whole),
        "array with strides of its own": (overlapping, (overlapping.ctypes.data, 2 * ROWS * ROW)),
        "tensor of an array": (torch.from_numpy(array), whole),
        "tensor of its first rows": (torch.from_numpy(array[: ROWS + 1]), whole),
        "tensor of a slice": (torch.from_numpy(array[3 : ROWS + 5]), None),
        "array of a tensor": (tensor.numpy()[3 : ROWS + 5], every),
        "array of a slice": (tensor[3 : ROWS + 5].numpy(), every),
        "tensor over DLPack": (torch.from_dlpack(tensor[3 : ROWS + 5]), None),
        "part of a map": (of_map[1:-1], pages),
        "part of a view of a map": (of_view[1:], pages),
        "tensor of a part of a map": (torch.from_numpy(of_map[1:-1]), None),
        "part of a bytearray": (np.frombuffer(taken, np.uint8, offset=ROW).reshape(-1, ROW), None),
    }


@pytest.mark.parametrize("name", _sources())
def test_all_of_an_allocation_is_registered_or_nothing(driver: _Driver, name: str) -> None:
    rows, whole = _sources()[name]
    found = columns(rows) if isinstance(rows, torch.Tensor) else _array_columns(rows)
    registered = rows_of(found)
    if whole is None:
        assert "may be a part of something larger" in registered.reason
        return
    assert registered.reason == ""
    ((address, (size, _)),) = driver.items()
    begin, length = whole
    assert begin - PAGE < address <= begin
    # The C library's block may end a few bytes after what was asked for.
    assert begin + length <= address + size <= begin + length + 2 * PAGE
    registered.release("")


def test_empty_arrays_beside_large_ones(driver: _Driver) -> None:
    class Arrays:
        def __len__(self) -> int:
            return 0

        def __vramkit_arrays__(self) -> Any:
            return {"a": np.empty((0, ROW), np.uint8), "b": torch.empty(0, ROW)}

    rows = rows_of(columns_of(find_arrays(Arrays())))
    assert (rows.reason, rows.size_bytes) == ("", 0)


def _array_columns(array: Any) -> list[Column]:
    class Arrays:
        def __len__(self) -> int:
            return len(array)

        def __vramkit_arrays__(self) -> Any:
            return array

    return columns_of(find_arrays(Arrays()))


def _array_segments(array: Any) -> list[Any]:
    return [each for column in _array_columns(array) for each in column.segments]


def test_loaders_of_the_same_data_share_a_registration(driver: _Driver) -> None:
    found = columns(large())
    first, second = rows_of(found), rows_of(found)
    assert (len(driver.held), first.reason, second.reason) == (1, "", "")
    first.release("")
    assert len(driver.held) == 1
    second.release("")
    assert not driver.held


@pytest.mark.parametrize(
    ("shape", "bound_bytes", "reason"),
    [
        ((ROWS, ROW), ROW * ROWS, "more than staging_bytes"),
        ((3, ROW), 1 << 32, "may share pages with other memory"),
        ((ROWS, ROW - 1), 1 << 32, "rows of less than 32 KiB"),
    ],
)
def test_what_is_not_registered(
    driver: _Driver, shape: tuple[int, int], bound_bytes: int, reason: str
) -> None:
    rows = rows_of(columns(torch.empty(shape, dtype=torch.uint8)), bound_bytes)
    assert reason in rows.reason
    assert not driver.held


def test_a_refusal_of_the_driver_leaves_nothing_registered(driver: _Driver) -> None:
    first, second = large(), large()
    held = rows_of(columns(first))
    driver.refuses = True
    rows = rows_of(columns(first, second))
    assert rows.reason.endswith("the driver refuses")
    assert len(driver.held) == 1
    driver.refuses = False
    rows.begin()
    assert (rows.reason, len(driver.held)) == ("", 2)
    rows.release("")
    held.release("")
    assert not driver.held


def test_nothing_is_registered_after_an_interrupt(
    driver: _Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> None:
        driver.register(*arguments, **named)
        raise KeyboardInterrupt

    rows = RegisteredRows(columns(large()), 0, 1 << 32)
    monkeypatch.setattr(module, "host_register", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows.begin()
    rows.release("closed")
    assert not driver.held


def test_a_fork_gives_private_memory_back_until_the_next_epoch(driver: _Driver) -> None:
    rows = rows_of(columns(large()))
    child = os.fork()
    if child == 0:
        os._exit(len(driver.held))
    assert os.waitpid(child, 0)[1] == 0
    assert "forked" in rows.reason
    rows.begin()
    assert (rows.reason, len(driver.held)) == ("", 1)
    rows.release("")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.bin"
    np.zeros((ROWS, ROW), np.uint8).tofile(path)
    return path


def test_a_writable_map_that_is_refused_gets_a_hint(driver: _Driver, file: Path) -> None:
    mapped = np.memmap(file, np.uint8, "r+", shape=(ROWS, ROW))
    assert mapped.sum() == 0

    class Arrays:
        def __len__(self) -> int:
            return ROWS

        def __vramkit_arrays__(self) -> Any:
            return mapped

    driver.refuses = True
    rows = rows_of(columns_of(find_arrays(Arrays())))
    assert rows.reason.endswith("map files for reading only (numpy: mode 'r')")


@pytest.mark.parametrize(("mode", "read_only"), [("r", True), ("r+", False)])
def test_a_memory_map_is_registered_as_a_whole(
    driver: _Driver, file: Path, mode: Any, read_only: bool
) -> None:
    mapped = np.memmap(file, np.uint8, mode, PAGE + 16, shape=(ROWS - 2, ROW))
    assert mapped.sum() == 0
    (found,) = ranges_of(_array_segments(mapped[3:]))
    assert (found.read_only, found.private) == (read_only, False)
    assert found.begin <= mapped.ctypes.data
    assert found.end >= mapped.ctypes.data + mapped.nbytes


def test_a_private_map_is_refused(file: Path) -> None:
    mapped = np.memmap(file, np.uint8, "c", shape=(ROWS, ROW))
    with pytest.raises(NotRegisteredError, match="mapped privately"):
        ranges_of(_array_segments(mapped))


def test_a_file_that_is_not_in_memory_is_refused(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
        os.truncate(opened.fileno(), 2 * ROW * ROWS)
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    mapped = np.memmap(file, np.uint8, "r", shape=(2 * ROWS, ROW))
    with pytest.raises(NotRegisteredError, match="not in memory as a whole yet"):
        ranges_of(_array_segments(mapped))
