"""Memory that a resource gave: taken in one piece, held while the pool has blocks."""

import contextlib
import gc
import sys
import time
import types
import weakref
from typing import Any

import pytest
import torch

from vramkit import MemoryPool
from vramkit._core import CorePool
from vramkit.errors import CapacityError, InvalidArgumentError, PoolBusyError
from vramkit.pool import _close, _interop, _upstream
from vramkit.pool._device import pool_device

MIB = 1 << 20
GIB = 1 << 30


class _Resource:
    def __init__(self, address: int, room_bytes: int = GIB) -> None:
        self.address, self.room_bytes = address, room_bytes


class _Buffer:
    def __init__(self, *, size: int, mr: _Resource) -> None:
        if size > mr.room_bytes:
            raise MemoryError("the resource is full")
        self.ptr, self.size = mr.address, size


@pytest.fixture(autouse=True)
def _rmm(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("rmm")
    module.DeviceBuffer = _Buffer
    module.mr = types.SimpleNamespace(DeviceMemoryResource=_Resource)
    _interop.rmm_module.cache_clear()
    monkeypatch.setitem(sys.modules, "rmm", module)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def _take(resource: object, size_bytes: int) -> tuple[Any, int, int]:
    return _upstream.take(resource, size_bytes, page_bytes=2 * MIB, ordinal=0)  # type: ignore[arg-type]


def test_whole_pages_are_asked_for() -> None:
    buffer, address, usable = _take(_Resource(64 * MIB), 11 * MIB)
    assert (buffer.size, address, usable) == (10 * MIB, 64 * MIB, 10 * MIB)


def test_a_part_of_a_page_at_the_start_is_not_used() -> None:
    _, address, usable = _take(_Resource(65 * MIB), 10 * MIB)
    assert (address, usable) == (66 * MIB, 9 * MIB)


def test_what_cannot_be_an_upstream() -> None:
    with pytest.raises(TypeError, match=r"an rmm\.mr\.DeviceMemoryResource, got 5 of type int"):
        _take(5, MIB)
    with pytest.raises(
        CapacityError, match=r"cannot give 4\.0 MiB in one piece: the resource is full"
    ):
        _take(_Resource(64 * MIB, room_bytes=MIB), 4 * MIB)
    other = CorePool.create(backend="host", label="x", capacity_bytes=8 * MIB)
    inside = other.alloc(4 * MIB)
    with pytest.raises(InvalidArgumentError, match="lies in a vramkit pool already"):
        _take(_Resource(inside), 4 * MIB)


def test_an_upstream_is_for_cuda() -> None:
    with pytest.raises(InvalidArgumentError, match="upstream= is for CUDA pools and the device is"):
        MemoryPool("64MiB", device="cpu", upstream=_Resource(0))  # type: ignore[arg-type]


def _wait_until_gone(reference: "weakref.ref[_Buffer]") -> None:
    deadline = time.monotonic() + 30
    while reference() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_memory_is_held_until_the_last_block_is_freed() -> None:
    for _ in range(3):
        cores = [
            CorePool.create(backend="host", label="x", capacity_bytes=8 * MIB) for _ in range(2)
        ]
        addresses = [core.alloc(MIB) for core in cores]
        buffers = [_Buffer(size=MIB, mr=_Resource(0)) for _ in range(2)]
        references = [weakref.ref(buffer) for buffer in buffers]
        for core in cores:
            _upstream.keep(core, buffers.pop(0))  # type: ignore[arg-type]
            _close.release(core)
        time.sleep(0.3)
        gc.collect()
        assert [reference() is None for reference in references] == [False, False]
        cores[0].free(addresses[0])
        _wait_until_gone(references[0])
        assert references[1]() is not None
        cores[1].free(addresses[1])
        _wait_until_gone(references[1])


def test_an_empty_pool_s_memory_is_given_back_at_once() -> None:
    core = CorePool.create(backend="host", label="x", capacity_bytes=8 * MIB)
    buffer = _Buffer(size=MIB, mr=_Resource(0))
    reference = weakref.ref(buffer)
    _upstream.keep(core, buffer)  # type: ignore[arg-type]
    _close.release(core)
    del buffer
    gc.collect()
    assert reference() is None


def test_a_closed_pool_s_memory_is_given_back_while_its_object_lives() -> None:
    core = CorePool.create(backend="host", label="x", capacity_bytes=8 * MIB)
    buffer = _Buffer(size=MIB, mr=_Resource(0))
    reference = weakref.ref(buffer)
    _upstream.keep(core, buffer)  # type: ignore[arg-type]
    del buffer
    address = core.alloc(MIB)
    with pytest.raises(PoolBusyError):
        _close.close(core, pool_device("cpu"))
    assert reference() is not None
    core.free(address)
    _close.close(core, pool_device("cpu"))
    assert reference() is None


def test_an_interrupted_finalizer_takes_no_memory_from_under_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = CorePool.create(backend="host", label="x", capacity_bytes=8 * MIB)
    buffer = _Buffer(size=MIB, mr=_Resource(0))
    reference = weakref.ref(buffer)
    _upstream.keep(core, buffer)  # type: ignore[arg-type]
    del buffer
    address = core.alloc(MIB)

    def interrupt(_core: CorePool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CorePool, "release", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _close.release(core)
    monkeypatch.undo()
    gc.collect()
    assert reference() is not None
    core.free(address)
    _close.release(core)
    assert reference() is None
