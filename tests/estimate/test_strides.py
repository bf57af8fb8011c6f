"""Strides of element-wise results in half precision are those of a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vramkit.estimate import find_target
from vramkit.estimate._trace import trace

_H100 = find_target("h100")


def _of(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    last = torch.ones(2, 5, 6, 4, device=device, dtype=dtype).movedim(-1, 1)
    expanded = torch.ones((), device=device, dtype=dtype).expand(2, 4, 5, 6)
    part = torch.ones(1, 4, 5, 1, device=device, dtype=dtype).expand(2, 4, 5, 6)
    return last, expanded, part


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "use",
    [
        lambda last, expanded, _: expanded * last,
        lambda last, expanded, _: last + expanded,
        lambda last, _, part: part / last,
        lambda last, expanded, part: torch.where(part > 0, expanded, last),
        lambda last, expanded, part: torch.addcmul(expanded, part, last),
        lambda _, expanded, part: part - expanded,
        lambda _, expanded, __: expanded * 2,
        lambda last, expanded, _: torch.ops.aten.threshold_backward(expanded, last, 0),
    ],
)
def test_they_follow_from_the_operands(
    use: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], dtype: torch.dtype
) -> None:
    found = []

    def step() -> None:
        found.append(use(*_of("cuda", dtype)).stride())

    trace(lambda: step, target=_H100, steps=1)
    assert found == [use(*_of("cpu", dtype)).stride()]
