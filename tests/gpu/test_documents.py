"""The GPU examples of the documents run as they stand, around stand-ins for a user's program."""

from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from helpers.documents import DOCUMENTS, python_blocks
from helpers.gpu import bytes_on_gpu, train

import vramkit

Namespace = dict[str, object]


@pytest.fixture
def program(pool: vramkit.MemoryPool) -> Iterator[Namespace]:
    """What an example takes for granted."""
    names: Namespace = {
        "torch": torch,
        "vramkit": vramkit,
        "pool": pool,
        "train": train,
        "train_some_steps": train,
        "compute": lambda: bytes_on_gpu(1000),
        "queue": SimpleQueue(),
    }
    yield names
    names.clear()


@pytest.fixture
def rmm_restored() -> Iterator[None]:
    rmm = pytest.importorskip("rmm", reason="no rmm")
    before = rmm.mr.get_current_device_resource()
    yield
    rmm.mr.set_current_device_resource(before)


@pytest.fixture
def cupy_restored() -> Iterator[None]:
    cupy = pytest.importorskip("cupy", reason="no cupy")
    before = cupy.cuda.get_allocator()
    yield
    cupy.cuda.set_allocator(before)


def _examples(needs: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    found = [
        pytest.param(block, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(python_blocks(path, needs))
    ]
    assert found
    return pytest.mark.parametrize("example", found)


def _run(example: str, program: Namespace) -> None:
    exec(compile(example, "example", "exec"), program)
    torch.cuda.synchronize()


@_examples("a GPU")
def test_examples_run(
    example: str, program: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        _run(example, program)
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
        torch.cuda.set_per_process_memory_fraction(1.0)


@_examples("a GPU and rmm")
def test_examples_with_rmm_run(example: str, program: Namespace, rmm_restored: None) -> None:
    _run(example, program)


@_examples("a GPU and cupy")
def test_examples_with_cupy_run(example: str, program: Namespace, cupy_restored: None) -> None:
    _run(example, program)
