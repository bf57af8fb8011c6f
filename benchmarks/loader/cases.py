"""What is loaded, and how: datasets and arguments that fit the machine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.loader.datasets import Images, SmallTensors, Tokens, image_tensors, rows
from benchmarks.loader.jpeg import JpegFiles
from benchmarks.loader.text import Blocks, Documents, TokenFile, pad

TOKENS = 1 << 24
BLOCK = 1024


@dataclass(frozen=True)
class Case:
    """A dataset, how it is loaded, and the peers that are measured besides PyTorch's loader."""

    name: str
    make: Callable[[], Any]
    options: dict[str, Any]
    peers: tuple[str, ...] = ()


def cases(*, on_gpu: bool) -> Iterator[Case]:
    """List the cases; sizes fit the machine."""
    yield from _array_cases(on_gpu=on_gpu)
    yield from _image_cases(on_gpu=on_gpu)
    yield from _small_cases(on_gpu=on_gpu)
    yield from _real_cases(on_gpu=on_gpu)


def chosen(found: Iterator[Case], prefixes: str) -> Iterator[Case]:
    """Leave out the cases whose name begins with none of the prefixes, which commas separate."""
    return (case for case in found if case.name.startswith(tuple(prefixes.split(","))))


def image_options(*, on_gpu: bool) -> dict[str, Any]:
    """Return the arguments for batches of images."""
    return {"batch_size": 256 if on_gpu else 64, "shuffle": True, "drop_last": True}


def worker_options(workers: int) -> dict[str, Any]:
    """Return the arguments for worker processes that outlast an epoch."""
    return {"num_workers": workers, "persistent_workers": True, "prefetch_factor": 4}


def usual_workers(*, on_gpu: bool) -> int:
    """Return how many workers most cases have."""
    return 8 if on_gpu else 2


def array_images(workers: int, *, on_gpu: bool) -> Case:
    """Return the case of images in memory; an epoch of it has 128 or 256 batches."""
    more = {"num_workers": workers, "persistent_workers": workers > 0}
    return Case(
        f"arrays_images_workers_{workers}",
        partial(image_tensors, 1 << 16 if on_gpu else 1 << 13),
        image_options(on_gpu=on_gpu) | more,
        # SPDL would copy the arrays into each worker.
        peers=("timm_style", "tensordict") if workers > 0 else (),
    )


def python_images(workers: int, *, on_gpu: bool) -> Case:
    """Return the case of images that a dataset in Python copies out of a memory map."""
    return Case(
        f"python_images_workers_{workers}",
        partial(Images, 4096 if on_gpu else 512),
        image_options(on_gpu=on_gpu) | worker_options(workers),
        peers=("timm_style", "tensordict", "spdl")
        if workers == usual_workers(on_gpu=on_gpu)
        else (),
    )


def _array_cases(*, on_gpu: bool) -> Iterator[Case]:
    for workers in (0, usual_workers(on_gpu=on_gpu)):
        yield array_images(workers, on_gpu=on_gpu)
    options = {"batch_size": 8192 if on_gpu else 1024, "shuffle": True, "drop_last": True}
    for row_bytes, count in ((4096, 1 << 20), (256, 1 << 22)):
        smaller = count if on_gpu else count >> 3
        yield Case(f"arrays_rows_{row_bytes}", partial(rows, smaller, row_bytes), options)
    if on_gpu:
        large = options | {"batch_size": 1 << 17}
        yield Case("arrays_rows_256_batch_131072", partial(rows, 1 << 22, 256), large)
    small = options | {"batch_size": 256}
    yield Case("arrays_rows_100_batch_256", partial(rows, 1 << 20, 100), small)


def _image_cases(*, on_gpu: bool) -> Iterator[Case]:
    for workers in (1, 2, 4, 8, 15) if on_gpu else (1, 2):
        yield python_images(workers, on_gpu=on_gpu)


def _small_cases(*, on_gpu: bool) -> Iterator[Case]:
    workers = usual_workers(on_gpu=on_gpu)
    for tensors in (8, 32, 128):
        yield Case(
            f"small_tensors_{tensors}",
            partial(SmallTensors, tensors),
            {"batch_size": None} | worker_options(workers),
        )
    yield Case("tokens", partial(Tokens, 20_000), {"batch_size": 32} | worker_options(2))


def _real_cases(*, on_gpu: bool) -> Iterator[Case]:
    for workers in (8, 15) if on_gpu else (2,):
        options = image_options(on_gpu=on_gpu) | worker_options(workers)
        yield Case(f"jpeg_workers_{workers}", partial(JpegFiles, 256), options)
    workers = usual_workers(on_gpu=on_gpu)
    options = {"batch_size": 32, "shuffle": True} | worker_options(workers)
    yield Case(
        f"text_padded_workers_{workers}",
        lambda: Documents(TokenFile(TOKENS)),
        options | {"collate_fn": pad},
    )
    yield Case(f"text_blocks_workers_{workers}", lambda: Blocks(TokenFile(TOKENS), BLOCK), options)
