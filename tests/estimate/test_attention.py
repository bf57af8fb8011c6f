"""The kernel of attention is the one that the program allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import vramkit
from vramkit.errors import UntraceableError

_CUDNN, _FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
_EFFICIENT, _MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
_LENGTH = 256


def _attention(
    kernels: list[SDPBackend], dtype: torch.dtype = torch.bfloat16, **options: Any
) -> Callable[[], Callable[[], object]]:
    def make_step() -> Callable[[], object]:
        parts = torch.empty(3, 2, 4, _LENGTH, 64, dtype=dtype, device="cuda")

        def step() -> object:
            with sdpa_kernel(kernels, **options):
                return scaled_dot_product_attention(*parts)

        return step

    return make_step


@pytest.mark.parametrize(
    ("target", "kernels", "chosen"),
    [
        ("h100", [_MATH], "math"),
        ("h100", [_FLASH], "flash"),
        ("h100", [_EFFICIENT, _MATH], "efficient"),
        ("a100-80gb", [_CUDNN, _FLASH], "flash"),
        ("a100-80gb", [_CUDNN], "cudnn"),
        ("t4", [_FLASH, _MATH], "math"),
    ],
)
def test_others_are_passed_over(target: str, kernels: list[SDPBackend], chosen: str) -> None:
    found = vramkit.estimate(step=_attention(kernels), target=target, steps=1)
    assert found.attention == {chosen: 1}


def test_plain_products_keep_their_scores() -> None:
    found = vramkit.estimate(step=_attention([_MATH]), steps=1)
    assert max(block.size_bytes for block in found.trace.blocks) >= 2 * 4 * _LENGTH**2 * 4


def test_the_program_s_order_counts() -> None:
    step = _attention([_EFFICIENT, _FLASH], set_priority=True)
    assert vramkit.estimate(step=step, steps=1).attention == {"efficient": 1}


def test_where_none_serves_the_step_is_refused() -> None:
    text = (
        r"test_attention\.py:\d+ computes attention, and no kernel of it that the program allows "
        r"takes these inputs on an NVIDIA H100"
    )
    with pytest.raises(UntraceableError, match=text):
        vramkit.estimate(step=_attention([_FLASH], torch.float32))
    found = vramkit.estimate(step=_attention([_FLASH, _MATH], torch.float32), steps=1)
    assert found.attention == {"math": 1}


def test_masks_whose_columns_lie_apart_need_plain_products() -> None:
    def make_step() -> Callable[[], object]:
        parts = torch.empty(3, 2, 4, 64, 64, dtype=torch.bfloat16, device="cuda")
        bias = torch.empty(64, 64, 4, dtype=torch.bfloat16, device="cuda").permute(2, 0, 1)

        def step() -> object:
            scaled_dot_product_attention(*parts, attn_mask=bias.contiguous())
            return scaled_dot_product_attention(*parts, attn_mask=bias)

        return step

    assert vramkit.estimate(step=make_step, steps=1).attention == {"cudnn": 1, "math": 1}
