"""Packed sequences, whose sizes are values of tensors on the host: known, or refused.

What is written here is C++ in PyTorch (ATen/native/PackedSequence.cpp), which reads the values by
their address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._ops._plan import Give, scratch
from vramkit.estimate._shadow import Shadows

Known = Callable[[Any], torch.Tensor | None]


class Recorder(Protocol):
    """Records what an operator allocates.

    Attributes:
        shadows: Values that are known without data.
    """

    shadows: Shadows

    def follow(self, plan: Sequence[Any], outputs: tuple[Any, ...]) -> None:
        """Record what a plan says."""


def known_sizes(tensor: Any, known: Known) -> list[int]:
    """Return the sizes of batches or the lengths of sequences.

    Raises:
        UntraceableError: They depend on data.
    """
    value = known(tensor)
    if value is None:
        raise UntraceableError(
            f"{line_of_caller()} packs sequences whose lengths depend on the data, so their memory "
            "cannot be known; make the lengths constants in the estimated step, such as "
            "torch.full((batch,), longest)"
        )
    with _disable_current_modes():
        return [int(size) for size in value.tolist()]


def composites(known: Known) -> dict[str, Callable[..., Any]]:
    """Return what the operators of packed sequences do that autograd takes apart."""

    def pad(data: Any, batch_sizes: Any, batch_first: bool, padding: Any, total: int) -> Any:
        return _pad(data, known_sizes(batch_sizes, known), batch_first, padding, total)

    def backward(gradient: Any, shape: Sequence[int], _: Any, batch_first: bool) -> Any:
        sizes = list(shape)
        if batch_first:
            sizes[:2] = sizes[1], sizes[0]
        found = gradient.new_zeros(sizes)
        return found.transpose(0, 1) if batch_first else found

    return {"_pad_packed_sequence": pad, "_pack_padded_sequence_backward": backward}


def pack(recorder: Recorder, _: Any, args: tuple[Any, ...], __: dict[str, Any]) -> Any:
    """What ``aten::_pack_padded_sequence`` returns: the elements, and how many each step has."""
    padded, lengths, batch_first = args
    if lengths.device.type != "cpu":
        raise UntraceableError(
            f"{line_of_caller()}: the lengths of sequences must be a tensor of the CPU, got one of "
            f"{lengths.device}; pass lengths.cpu()"
        )
    sizes = known_sizes(lengths, recorder.shadows.of)
    steps_first = padded.transpose(0, 1) if batch_first else padded
    _check_lengths(sizes, steps_first)
    counts = [sum(size > step for size in sizes) for step in range(sizes[0])]
    data = padded.new_empty(sum(sizes), *steps_first.shape[2:])
    batch_sizes = torch.empty(len(counts), dtype=torch.int64, device="cpu")
    with _disable_current_modes():
        value = torch.tensor(counts, dtype=torch.int64)
    recorder.shadows.set(batch_sizes, value)
    # Steps with the same sequences are copied together, unless they are dense; then all are joined.
    row = data[0].numel() * data.element_size()
    whole = len(sizes) if steps_first.is_contiguous() else 0
    copies = [
        counts.count(count) * count * row
        for count in sorted(set(counts), reverse=True)
        if count != whole
    ]
    temporary = scratch(*copies)
    recorder.follow([*temporary[:-1], Give(0), *temporary[-1:]], (data,))
    return data, batch_sizes


def _check_lengths(sizes: list[int], padded: Any) -> None:
    """Refuse what the operator refuses."""
    if sizes != sorted(sizes, reverse=True):
        raise UntraceableError(
            f"{line_of_caller()}: the lengths of sequences must decrease, got {sizes[:8]}; pass "
            "enforce_sorted=False"
        )
    if not sizes or sizes[-1] <= 0:
        raise UntraceableError(
            f"{line_of_caller()}: all lengths of sequences must be positive, got "
            f"{sizes[-1] if sizes else 'none'}"
        )
    if len(sizes) != padded.shape[1] or sizes[0] > padded.shape[0]:
        raise UntraceableError(
            f"{line_of_caller()}: a padded batch of {padded.shape[1]} sequences with "
            f"{padded.shape[0]} steps needs as many lengths up to that, got {len(sizes)} up to "
            f"{sizes[0]}"
        )


def _pad(
    data: Any, counts: list[int], batch_first: bool, padding: Any, total: int
) -> tuple[Any, Any]:
    longest = len(counts)
    if total > 0 and total < longest:
        raise UntraceableError(
            f"{line_of_caller()}: total_length must be at least that of the longest sequence, "
            f"{longest}, got {total}"
        )
    out = data.new_full((max(total, longest), counts[0], *data.shape[1:]), padding)
    start = offset = 0
    for step in range(1, longest + 1):
        if step < longest and counts[step] == counts[start]:
            continue
        count = counts[start]
        part = data.narrow(0, offset, count * (step - start))
        place = out.narrow(0, start, step - start).narrow(1, 0, count)
        place.copy_(part.view(step - start, count, *data.shape[1:]))
        offset, start = offset + count * (step - start), step
    lengths = [sum(count > place for count in counts) for place in range(counts[0])]
    return out.transpose(0, 1) if batch_first else out, torch.tensor(lengths, device="cpu")
