"""The pattern ops: every byte counts, on every device that is there."""

from __future__ import annotations

import pytest
import torch

from vramkit._ops import count_mismatches, fill_pattern_

_MASK = (1 << 64) - 1


def _word(index: int, seed: int) -> int:
    x = (index + seed * 0x9E3779B97F4A7C15) & _MASK
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & _MASK
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & _MASK
    return x >> 32


@pytest.mark.parametrize("seed", [0, 1, -5, 2**62])
@pytest.mark.parametrize("size_bytes", [1, 3, 4, 16, 21, 4099])
def test_the_pattern_is_the_documented_one(device: str, size_bytes: int, seed: int) -> None:
    tensor = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    fill_pattern_(tensor, seed=seed)
    words = -(-size_bytes // 4)
    wanted = b"".join(_word(i, seed).to_bytes(4, "little") for i in range(words))[:size_bytes]
    assert bytes(tensor.cpu().tolist()) == wanted


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.complex128])
def test_what_was_filled_has_no_mismatches(device: str, dtype: torch.dtype) -> None:
    tensor = torch.empty((37, 11), dtype=dtype, device=device)
    fill_pattern_(tensor, seed=3)
    result = count_mismatches(tensor, seed=3)
    assert (result.dtype, result.shape, result.device) == (torch.int64, (), tensor.device)
    assert result.item() == 0
    assert count_mismatches(tensor, seed=4).item() > 0


@pytest.mark.parametrize("offset_bytes", [0, 1, 4, 5])
def test_each_flipped_byte_is_seen(device: str, offset_bytes: int) -> None:
    tensor = torch.empty(64 + offset_bytes, dtype=torch.uint8, device=device)[offset_bytes:-3]
    fill_pattern_(tensor, seed=9)
    for position in range(tensor.numel()):
        tensor[position] ^= 0x40
        assert count_mismatches(tensor, seed=9).item() == 1
        tensor[position] ^= 0x40
    assert count_mismatches(tensor, seed=9).item() == 0


def test_mismatches_are_counted_by_word(device: str) -> None:
    tensor = torch.empty(1 << 20, dtype=torch.int32, device=device)
    fill_pattern_(tensor, seed=2)
    tensor[::1024] += 1
    assert count_mismatches(tensor, seed=2).item() == 1024


def test_neighbouring_bytes_stay_untouched(device: str) -> None:
    whole = torch.zeros(103, dtype=torch.uint8, device=device)
    fill_pattern_(whole[17:86], seed=5)
    assert whole[:17].count_nonzero() == 0
    assert whole[86:].count_nonzero() == 0


def test_an_empty_tensor_has_no_mismatches(device: str) -> None:
    tensor = torch.empty(0, device=device)
    fill_pattern_(tensor, seed=1)
    assert count_mismatches(tensor, seed=1).item() == 0


def test_a_strided_tensor_is_refused(device: str) -> None:
    tensor = torch.zeros(4, 4, device=device).t()
    with pytest.raises(RuntimeError, match=r"must be contiguous; call contiguous\(\) on it first"):
        fill_pattern_(tensor, seed=1)
    with pytest.raises(RuntimeError, match="must be contiguous"):
        count_mismatches(tensor, seed=1)


def test_opcheck(device: str) -> None:
    tensor = torch.zeros(33, device=device)
    torch.library.opcheck(torch.ops.vramkit.fill_pattern_.default, (tensor, 1))
    torch.library.opcheck(torch.ops.vramkit.count_mismatches.default, (tensor, 1))
