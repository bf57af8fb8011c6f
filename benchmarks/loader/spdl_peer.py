"""SPDL: a pipeline whose processes fetch and collate, and whose thread moves batches to the GPU.

It is put together from SPDL's parts as its loader for PyTorch's datasets is. That loader itself
moves batches only into pinned memory, and its processes end with each epoch.
"""

import itertools
import multiprocessing
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from torch.utils.data import DataLoader

# Of a worker process: a dataset that each task carried would be pickled again and again.
_fetcher: list[DataLoader[Any]] = []


def _set_fetcher(loader: DataLoader[Any]) -> None:
    _fetcher[:] = [loader]


def _fetch(indices: Any) -> Any:
    [loader] = _fetcher
    if loader.batch_size is None:
        return loader.collate_fn(loader.dataset[indices])
    return loader.collate_fn([loader.dataset[index] for index in indices])


def spdl(
    dataset: Any, options: dict[str, Any], *, on_gpu: bool
) -> tuple[Any, Generator[Any, None, None]]:
    """Make the pipeline; PyTorch's loader only lends its sampler and its collate function."""
    unused = ("num_workers", "persistent_workers", "prefetch_factor")
    more = {name: value for name, value in options.items() if name not in unused}
    loader: DataLoader[Any] = DataLoader(dataset, **more)
    workers = options["num_workers"]
    return loader, _batches(loader, workers, workers * options["prefetch_factor"], on_gpu=on_gpu)


def _batches(
    loader: DataLoader[Any], workers: int, buffered: int, *, on_gpu: bool
) -> Generator[Any, None, None]:
    from spdl.pipeline import PipelineBuilder

    sampler = loader.batch_sampler or loader.sampler
    indices = itertools.chain.from_iterable(itertools.repeat(sampler))
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _set_fetcher, (loader,)
    )
    parts = PipelineBuilder().add_source(indices)
    parts.pipe(_fetch, executor=executor, concurrency=workers, output_order="input")
    if on_gpu:
        from spdl.io import transfer_tensor_h2d

        parts.pipe(transfer_tensor_h2d, output_order="input")
    pipeline = parts.add_sink(buffered).build(num_threads=1)
    try:
        with pipeline.auto_stop():
            yield from pipeline
    finally:
        executor.shutdown(cancel_futures=True)
