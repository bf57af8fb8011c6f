"""The recommender of the examples trains alike with PyTorch's parts and with vramkit's."""

import pytest
import torch
from helpers.recommender import losses, take_rows

from examples.train_recommender import Training, make_clicks
from vramkit import MemoryPool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_train_alike(dtype, pool: MemoryPool) -> None:
    """Equal rows and batches. Kernels differ in their roundings to bfloat16, and Adam's first
    steps have the size of the learning rate whatever the gradient's: losses drift apart."""
    rows, batch = 5000, 512
    clicks = make_clicks(8 * batch, rows, 16)
    stock = Training(clicks, rows, batch, device="cuda", stock=True, workers=0)
    with pool:
        own = Training(clicks, rows, batch, device="cuda", row_dtype=dtype)
        take_rows(own, stock, dtype)
        found = losses(own, 20)
        assert pool.stats().live_bytes > 0
        own.loader.close()
    expected = losses(stock, 20)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert found[-1] < found[0]
