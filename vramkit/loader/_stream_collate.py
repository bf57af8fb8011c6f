"""``default_collate`` that writes each sample into its place of the batch as it comes.

PyTorch collects a list of samples and stacks them. Here a sample's large tensors and arrays are
copied into the slot at once, while they are in the caches, and their memory is free for the next
sample. The result equals ``default_collate``; where the samples of a batch differ in type, dtype
or shape, or are of a kind not known here, PyTorch's own function decides.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.utils.data import _utils

from vramkit.loader._packing import is_plain
from vramkit.loader._slot_writer import SlotWriter

_collate: Any = _utils.collate
# What PyTorch does with tensors and arrays unless the user has put in a function of his own.
_TENSOR_FUNCTION = _collate.collate_tensor_fn
_ARRAY_FUNCTION = _collate.collate_numpy_array_fn
# Smaller leaves are collected and stacked: a call for each sample would cost more.
_STREAM_FROM_BYTES = 2048


class _Node(Protocol):
    def put(self, position: int, sample: Any, /) -> bool: ...
    def undo(self, count: int) -> None: ...
    def take(self, position: int) -> Any: ...
    def finish(self) -> Any: ...


class _Collected:
    """A leaf whose samples are collected in a list and collated at the end."""

    def __init__(self, collate: Callable[[Any], Any], kind: type) -> None:
        self._samples: list[Any] = []
        self._collate = collate
        # PyTorch has the parts of sequences in tuples, all else in lists; texts stay in theirs.
        self._kind = kind

    def put(self, _position: int, sample: Any) -> bool:
        self._samples.append(sample)
        return True

    def undo(self, count: int) -> None:
        del self._samples[count:]

    def take(self, position: int) -> Any:
        return self._samples[position]

    def finish(self) -> Any:
        return self._collate(self._kind(self._samples))


class _Streamed:
    """A tensor or array of the samples, copied to its row of the batch."""

    def __init__(self, writer: SlotWriter, sample: Any, count: int) -> None:
        self._of_numpy = not isinstance(sample, torch.Tensor)
        tensor = torch.from_numpy(sample) if self._of_numpy else sample
        self._dtype, self._shape = sample.dtype, sample.shape
        self._row_bytes = tensor.numel() * tensor.element_size()
        self._copy = writer.copy
        offset = writer.reserve(self._row_bytes * count)
        self.fits = offset is not None
        if offset is not None:
            self._address = writer.address(offset)
            self._batch = writer.tensor(offset, tensor.dtype, (count, *tensor.shape))

    def put(self, position: int, sample: Any) -> bool:
        if self._of_numpy:
            return self._put_array(position, sample)
        if (
            type(sample) is not torch.Tensor
            or sample.dtype is not self._dtype
            or sample.shape != self._shape
            or not is_plain(sample)
        ):
            return False
        if sample.is_contiguous():
            to = self._address + position * self._row_bytes
            self._copy(to, sample.data_ptr(), self._row_bytes)
        else:
            self._batch[position].copy_(sample)
        return True

    def _put_array(self, position: int, sample: Any) -> bool:
        if not _is_array(sample) or sample.dtype != self._dtype or sample.shape != self._shape:
            return False
        to = self._address + position * self._row_bytes
        self._copy(to, sample.__array_interface__["data"][0], self._row_bytes)
        return True

    def undo(self, count: int) -> None:
        pass

    def take(self, position: int) -> Any:
        sample = self._batch[position].clone()
        return sample.numpy() if self._of_numpy else sample

    def finish(self) -> Any:
        return self._batch


class _Sequence:
    """A tuple or list of nodes; a batch of tuples becomes a list, as PyTorch has it."""

    def __init__(self, kind: type, parts: list[_Node]) -> None:
        self._kind, self._parts = kind, parts

    def put(self, position: int, sample: Any) -> bool:
        values = cast("Sequence[Any]", sample)
        if type(sample) is not self._kind or len(values) != len(self._parts):
            return False
        return all(part.put(position, x) for part, x in zip(self._parts, values, strict=True))

    def undo(self, count: int) -> None:
        for part in self._parts:
            part.undo(count)

    def take(self, position: int) -> Any:
        return self._kind(part.take(position) for part in self._parts)

    def finish(self) -> Any:
        return [part.finish() for part in self._parts]


class _Dictionary:
    """A dict of nodes."""

    def __init__(self, parts: dict[Any, _Node]) -> None:
        self._parts = parts

    def put(self, position: int, sample: Any) -> bool:
        if type(sample) is not dict or sample.keys() != self._parts.keys():
            return False
        return all(part.put(position, sample[key]) for key, part in self._parts.items())

    def undo(self, count: int) -> None:
        for part in self._parts.values():
            part.undo(count)

    def take(self, position: int) -> Any:
        return {key: part.take(position) for key, part in self._parts.items()}

    def finish(self) -> Any:
        return {key: part.finish() for key, part in self._parts.items()}


class StreamingCollate:
    """Collates samples one by one.

    Args:
        writer: The slot that takes the batch.
        collate: What ``default_collate`` does to a list of samples.
    """

    def __init__(self, writer: SlotWriter, collate: Callable[[list[Any]], Any]) -> None:
        self._writer = writer
        self._collate = collate

    def __call__(self, samples: Iterable[Any], count: int) -> Any:
        """Return the batch of ``count`` samples, which are drawn one at a time."""
        drawn = iter(samples)
        first = next(drawn)
        streamed: list[_Streamed] = []
        root = self._node(first, count, streamed)
        if not streamed or not all(leaf.fits for leaf in streamed):
            return self._collate(_exactly(count, [first, *drawn]))
        root.put(0, first)
        del first
        position = 1
        for sample in drawn:
            if not root.put(position, sample):
                root.undo(position)
                before = [root.take(each) for each in range(position)]
                return self._collate(_exactly(count, [*before, sample, *drawn]))
            position += 1
        _exactly(count, range(position))
        return root.finish()

    def _node(
        self, sample: Any, count: int, streamed: list[_Streamed], within: type = list
    ) -> _Node:
        kind = type(sample)
        if kind in (tuple, list) and not _is_registered(sample):
            return _Sequence(kind, [self._node(part, count, streamed, tuple) for part in sample])
        if kind is dict and not _is_registered(sample):
            parts = {key: self._node(part, count, streamed) for key, part in sample.items()}
            return _Dictionary(parts)
        if _may_stream(sample):
            leaf = _Streamed(self._writer, sample, count)
            streamed.append(leaf)
            return leaf
        return _Collected(self._collate, within)


def _exactly(count: int, samples: Any) -> Any:
    """The samples; if there are fewer, the dataset raised StopIteration, which goes on."""
    if len(samples) < count:
        raise StopIteration
    return samples


def _is_registered(sample: object) -> bool:
    return any(isinstance(sample, kind) for kind in _collate.default_collate_fn_map)


def _may_stream(sample: Any) -> bool:
    functions = _collate.default_collate_fn_map
    if isinstance(sample, torch.Tensor):
        unchanged = functions.get(torch.Tensor) in (_TENSOR_FUNCTION, stack_privately)
        size = sample.numel() * sample.element_size() if is_plain(sample) else 0
        return unchanged and size >= _STREAM_FROM_BYTES
    if _is_array(sample):
        unchanged = functions.get(np.ndarray) is _ARRAY_FUNCTION
        unchanged = unchanged and functions.get(torch.Tensor) in (_TENSOR_FUNCTION, stack_privately)
        return unchanged and sample.nbytes >= _STREAM_FROM_BYTES
    return False


def _is_array(sample: Any) -> bool:
    return (
        type(sample) in (np.ndarray, np.memmap)
        and sample.flags.c_contiguous
        and sample.dtype in _ARRAY_DTYPES
    )


def _array_dtypes() -> frozenset[Any]:
    names = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
    names += ["complex64", "complex128", "uint16", "uint32", "uint64"]
    return frozenset(np.dtype(name) for name in names)


_ARRAY_DTYPES = _array_dtypes()


def stack_privately(
    batch: Sequence[torch.Tensor], *, collate_fn_map: dict[Any, Any] | None = None
) -> torch.Tensor:
    """Stack as PyTorch's function does, but into ordinary memory.

    In a worker, PyTorch's makes a file of shared memory for each tensor. A batch is copied to its
    slot later, so ordinary memory is quicker.
    """
    first = batch[0]
    if not is_plain(first):
        return _TENSOR_FUNCTION(batch, collate_fn_map=collate_fn_map)  # type: ignore[no-any-return]
    out = torch.empty((len(batch), *first.shape), dtype=first.dtype, device="cpu")
    return torch.stack(list(batch), 0, out=out)


def collate_into(writer: SlotWriter) -> Callable[[list[Any]], Any]:
    """Return what collates as ``default_collate`` does, with its tensors in the current slot.

    Nobody else may keep these tensors: the slot is used again.
    """

    def stack(
        batch: Sequence[torch.Tensor], *, collate_fn_map: dict[Any, Any] | None = None
    ) -> torch.Tensor:
        first = batch[0]
        size = first.numel() * first.element_size() * len(batch)
        offset = writer.reserve(size) if is_plain(first) and size else None
        if offset is None:
            return stack_privately(batch, collate_fn_map=collate_fn_map)
        out = writer.tensor(offset, first.dtype, (len(batch), *first.shape))
        return torch.stack(list(batch), 0, out=out)

    def collate(samples: list[Any]) -> Any:
        functions = _collate.default_collate_fn_map
        if functions.get(torch.Tensor) in (_TENSOR_FUNCTION, stack_privately):
            # In the order of the original: it decides which function serves a subclass.
            functions = {
                kind: stack if kind is torch.Tensor else function
                for kind, function in functions.items()
            }
        return _collate.collate(samples, collate_fn_map=functions)

    return collate
