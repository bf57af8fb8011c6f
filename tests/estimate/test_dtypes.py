"""Operators of two dtypes are refused, as on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

import vramkit
from vramkit.errors import UntraceableError

_HALF = torch.float16


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    return torch.zeros(shape, dtype=dtype, device="cuda")


_MIXED: dict[str, Callable[[], object]] = {
    "mm": lambda: _zeros(4, 4) @ _zeros(4, 4, dtype=_HALF),
    "mv": lambda: _zeros(4, 4) @ _zeros(4, dtype=_HALF),
    "addmm": lambda: functional.linear(_zeros(2, 4), _zeros(4, 4), _zeros(4, dtype=_HALF)),
    "convolution": lambda: functional.conv1d(_zeros(1, 2, 8), _zeros(2, 2, 3, dtype=_HALF)),
    "native_layer_norm": lambda: functional.layer_norm(_zeros(2, 4), (4,), _zeros(4, dtype=_HALF)),
    "native_group_norm": lambda: functional.group_norm(_zeros(2, 4, 4), 2, _zeros(4, dtype=_HALF)),
    "scaled_dot_product_attention": lambda: functional.scaled_dot_product_attention(
        *_zeros(2, 1, 1, 4, 8), _zeros(1, 1, 4, 8, dtype=_HALF)
    ),
    "index_add_": lambda: _zeros(4).index_add_(
        0, _zeros(4, dtype=torch.int64), _zeros(4, dtype=_HALF)
    ),
    "index_copy_": lambda: _zeros(4).index_copy_(
        0, _zeros(4, dtype=torch.int64), _zeros(4, dtype=_HALF)
    ),
    "index_put_": lambda: _zeros(4).index_put_(
        (_zeros(4, dtype=torch.int64),), _zeros(4, dtype=_HALF)
    ),
}


@pytest.mark.parametrize("name", _MIXED)
def test_two_dtypes(name: str) -> None:
    text = rf"test_dtypes\.py:\d+: aten::{name} has tensors of .*float16.*needs the same dtype"
    with pytest.raises(UntraceableError, match=text):
        vramkit.estimate(step=lambda: _MIXED[name])


def test_labels() -> None:
    labels = torch.zeros(4, dtype=torch.int32)

    def loss(output: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output, labels.to(output.device))

    text = r"aten::nll_loss_forward has labels of int32, but .* convert them by \.long\(\)"
    with pytest.raises(UntraceableError, match=text):
        vramkit.estimate(torch.nn.Linear(8, 8), torch.empty(4, 8), loss=loss)


def test_autocast_converts() -> None:
    model = torch.nn.Linear(8, 8).half()
    with pytest.raises(UntraceableError, match="tensors of float16, float32, float16, but a GPU"):
        vramkit.estimate(model, torch.empty(4, 8))
    vramkit.estimate(model, torch.empty(4, 8), autocast=_HALF)
    vramkit.estimate(model, torch.empty(4, 8, dtype=_HALF))
