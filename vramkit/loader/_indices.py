"""The batches of indices that a sampler yields, as tensors where the sampler is PyTorch's own.

``RandomSampler`` makes a permutation and then a Python integer of each element. For data that is
gathered by indices this alone costs more than the gathering, so the same permutation, drawn from
the same generator at the same moment, is cut into batches directly. A long permutation is made in
parts, so that the first batch does not wait for all of it.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from vramkit._core import MAX_PERMUTATION, Permutation
from vramkit.loader._resume import SkippingSampler

# Entries that are drawn at first; each time twice as many follow, up to the second number.
_FIRST_PART = 4096
_LARGEST_PART = 1 << 17


def tensor_batches(index_sampler: Any) -> Iterator[torch.Tensor] | None:
    """Return the batches of a sampler as int64 tensors, or None if it is not a known one."""
    if type(index_sampler) is SkippingSampler:
        batches = tensor_batches(index_sampler.sampler)
        return None if batches is None else index_sampler.done.left(batches)
    if type(index_sampler) is not BatchSampler:
        return None
    sampler = index_sampler.sampler
    if type(sampler) is SequentialSampler:
        chunks = _sequential(len(sampler.data_source), index_sampler.batch_size)
    elif type(sampler) is RandomSampler and not sampler.replacement:
        chunks = _permutations(sampler, index_sampler.batch_size)
    else:
        return None
    return _cut(chunks, index_sampler.batch_size, index_sampler.drop_last)


def _sequential(count: int, batch_size: int) -> Iterator[torch.Tensor]:
    # In parts of whole batches: all of them would take memory for the whole epoch.
    step = max(batch_size, _LARGEST_PART // batch_size * batch_size)
    for begin in range(0, count, step):
        yield torch.arange(begin, min(begin + step, count), device="cpu")


def _permutations(sampler: RandomSampler, batch_size: int) -> Iterator[torch.Tensor]:
    # The draws and their order are those of RandomSampler.__iter__.
    count = len(sampler.data_source)
    generator = sampler.generator
    own = generator is None
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        if sampler.num_samples <= count and _can_be_made_in_parts(count):
            yield from _parts(generator.initial_seed(), count, sampler.num_samples, batch_size)
            return
    for _ in range(sampler.num_samples // count):
        yield torch.randperm(count, generator=generator).cpu()
    rest = sampler.num_samples % count
    # RandomSampler draws the last permutation even if it takes nothing of it. That changes the
    # user's generator, but nobody sees it in the sampler's own.
    if rest or not own:
        yield torch.randperm(count, generator=generator).cpu()[:rest]


def _can_be_made_in_parts(count: int) -> bool:
    # torch is as fast for a short one. With another default device it draws there, or refuses.
    return (
        _FIRST_PART < count <= MAX_PERMUTATION
        and torch.get_default_device().type == "cpu"
        and _parts_are_torchs()
    )


@functools.cache
def _parts_are_torchs() -> bool:
    """Whether this torch draws permutations as the native core does; warns if it does not."""
    for seed, count in ((0, 1000), (2**40 + 2**31 + 1, 1000)):
        generator = torch.Generator().manual_seed(seed)
        expected = torch.randperm(count, generator=generator, device="cpu")
        if not torch.equal(torch.cat(list(_parts(seed, count, count, 300))), expected):
            warnings.warn(
                f"torch {torch.__version__} draws permutations in another way than this vramkit "
                "knows; torch.randperm is used, which makes a long permutation before the first "
                "batch. Look for a newer vramkit",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
    return True


def _parts(seed: int, count: int, wanted: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the first of ``torch.randperm(count)``, in parts of whole batches."""
    permutation = Permutation(seed, count)
    size = _FIRST_PART
    while wanted:
        entries = min(wanted, -(-size // batch_size) * batch_size)
        part = torch.empty(entries, dtype=torch.int64, device="cpu")
        permutation.next(part.data_ptr(), entries)
        yield part
        wanted -= entries
        size = min(2 * size, _LARGEST_PART)


def _cut(
    chunks: Iterator[torch.Tensor], batch_size: int, drop_last: bool
) -> Iterator[torch.Tensor]:
    rest = torch.empty(0, dtype=torch.int64, device="cpu")
    for chunk in chunks:
        begin = 0
        if len(rest):
            begin = batch_size - len(rest)
            rest = torch.cat([rest, chunk[:begin]])
            if len(rest) < batch_size:
                continue
            yield rest
        end = begin + (len(chunk) - begin) // batch_size * batch_size
        for at in range(begin, end, batch_size):
            yield chunk[at : at + batch_size]
        rest = chunk[end:]
    if len(rest) and not drop_last:
        yield rest


def as_indices(batch: Any) -> torch.Tensor | None:
    """Return a batch of indices as an int64 tensor, or None if it is not a list of integers."""
    if isinstance(batch, torch.Tensor):
        return batch if batch.dtype is torch.int64 and batch.dim() == 1 else None
    if not isinstance(batch, (list, tuple)) or not all(type(each) is int for each in batch):
        return None
    try:
        return torch.tensor(batch, dtype=torch.int64, device="cpu")
    except (RuntimeError, OverflowError):
        return None
