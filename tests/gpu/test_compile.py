"""torch.compile inside a pool, with CUDA graphs and without, in training and in inference."""

from collections.abc import Iterator

import pytest
import torch
from helpers.pools import is_in
from torch import nn

from vramkit import MemoryPool


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    # What compiled CUDA graphs hold would keep the pool alive.
    torch.compiler.reset()


def _model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8)).cuda()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inference(pool: MemoryPool, mode: str) -> None:
    with pool, torch.no_grad():
        model = _model().eval()
        compiled = torch.compile(model, mode=mode)
        for batch in (16, 16, 16, 16):
            x = torch.randn(batch, 64, device="cuda")
            torch.compiler.cudagraph_mark_step_begin()
            result = compiled(x).clone()
            torch.testing.assert_close(result, model(x), rtol=1e-3, atol=1e-3)
            assert is_in(pool, result)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_training(pool: MemoryPool, mode: str) -> None:
    def losses(*, compiled: bool) -> list[float]:
        model = _model()
        run = torch.compile(model, mode=mode) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        generator = torch.Generator("cuda").manual_seed(6)
        for _ in range(6):
            x = torch.randn(32, 64, device="cuda", generator=generator)
            y = torch.arange(32, device="cuda") % 8
            torch.compiler.cudagraph_mark_step_begin()
            loss = nn.functional.cross_entropy(run(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found.append(loss.item())
        return found

    with pool:
        assert losses(compiled=True) == pytest.approx(losses(compiled=False), rel=1e-3)
    assert pool.stats().allocations > 0


def test_compiled_outside_and_run_inside(pool: MemoryPool) -> None:
    with torch.no_grad():
        compiled = torch.compile(lambda t: (t * 2).cos().sum(1), mode="reduce-overhead")
        x = torch.randn(64, 64, device="cuda")
        expected = (x * 2).cos().sum(1)
        for _ in range(4):
            torch.testing.assert_close(compiled(x).clone(), expected, rtol=1e-4, atol=1e-4)
        with pool:
            for _ in range(4):
                torch.testing.assert_close(compiled(x).clone(), expected, rtol=1e-4, atol=1e-4)
