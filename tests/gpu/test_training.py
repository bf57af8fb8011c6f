"""Training inside a pool: the same bits as outside, with everything that users switch on."""

from collections.abc import Iterator

import pytest
import torch
from helpers.gpu import ConvNet, make_step, train
from helpers.pools import is_in, run_script
from torch import nn

from vramkit import MemoryPool


@pytest.fixture
def _deterministic() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_losses_are_bit_identical(pool: MemoryPool, autocast: bool, channels_last: bool) -> None:
    outside = train(autocast=autocast, channels_last=channels_last)
    with pool:
        inside = train(autocast=autocast, channels_last=channels_last)
    assert inside == outside
    assert pool.stats().allocations > 100


@pytest.mark.usefixtures("_deterministic")
def test_losses_are_bit_identical_in_a_tight_pool() -> None:
    """Stitched memory holds the same numbers."""
    wide = MemoryPool("1GiB", device="cuda")
    with wide:
        outside = train()
    tight = MemoryPool(
        int(1.02 * wide.stats().peak_live_bytes) + (4 << 20), device="cuda", page_bytes="2MiB"
    )
    # In the wide pool lie cuBLAS's workspaces, which the tight one then need not hold.
    with tight:
        inside = train()
    assert inside == outside
    tight._core.check()


def test_cudnn_benchmark(pool: MemoryPool) -> None:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        outside = train()
        with pool:
            inside = train()
    finally:
        torch.backends.cudnn.benchmark = before
    assert inside == pytest.approx(outside, rel=1e-2)


def test_checkpointing(pool: MemoryPool) -> None:
    def run(*, reentrant: bool) -> torch.Tensor:
        torch.manual_seed(2)
        layer = nn.Linear(256, 256, device="cuda")
        x = torch.randn(64, 256, device="cuda", requires_grad=True)
        y = x
        for _ in range(3):
            y = torch.utils.checkpoint.checkpoint(
                lambda t: nn.functional.dropout(layer(t).relu(), 0.5), y, use_reentrant=reentrant
            )
        y.sum().backward()
        assert x.grad is not None
        return x.grad

    for reentrant in (False, True):
        outside = run(reentrant=reentrant)
        with pool:
            inside = run(reentrant=reentrant)
        assert torch.equal(inside, outside)
        assert is_in(pool, inside)


def test_gradient_scaler_and_fused_optimizer(pool: MemoryPool) -> None:
    with pool:
        model = ConvNet(8).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        scaler = torch.amp.GradScaler("cuda")
        for _ in range(3):
            x = torch.randn(4, 3, 16, 16, device="cuda")
            with torch.autocast("cuda", torch.float16):
                loss = model(x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert torch.isfinite(loss)


def test_what_libraries_ask_for_beside_tensors(pool: MemoryPool) -> None:
    """Sorting, unique, FFT, linear algebra, random numbers: scratch memory by other doors."""
    with pool:
        torch.manual_seed(1)
        x = torch.randint(0, 1000, (100_000,), device="cuda")
        values, counts = x.unique(return_counts=True)
        assert int(counts.sum()) == 100_000
        assert torch.equal(values, x.sort().values.unique_consecutive())
        assert int((x == 3).nonzero().numel()) == int(counts[values == 3].sum())
        square = torch.randn(64, 64, device="cuda", dtype=torch.float64)
        torch.testing.assert_close(square @ torch.linalg.inv(square), torch.eye(64).double().cuda())
        torch.testing.assert_close(torch.fft.ifft(torch.fft.fft(square)).real, square)
        state = torch.cuda.get_rng_state()
        first = torch.rand(100, device="cuda")
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.rand(100, device="cuda"), first)
        assert torch.randperm(1000, device="cuda").sum() == 499_500
    assert pool.stats().failures == 0


def test_no_allocation_of_a_step_is_native(pool: MemoryPool) -> None:
    with pool:
        step = make_step(ConvNet().cuda())
        step()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        of_pool = pool.stats().allocations
        step()
        after = torch.cuda.memory_stats()["allocation.all.allocated"]
    assert after - before == pool.stats().allocations - of_pool > 0


DDP = """
import sys, torch
import torch.distributed as dist
from torch import nn
from vramkit import MemoryPool
from vramkit._core import owner

dist.init_process_group("nccl", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
torch.cuda.set_device(0)

def run(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 8)).cuda()
    model = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        x, y = torch.randn(32, 128, device="cuda"), torch.randint(0, 8, (32,), device="cuda")
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

plain = run(lambda model: model)
with MemoryPool("512MiB", device="cuda") as pool:
    inside = run(lambda model: nn.parallel.DistributedDataParallel(model, device_ids=[0]))
    shared = torch.ones(1000, device="cuda")
    dist.all_reduce(shared)
    gathered = [torch.empty(1000, device="cuda")]
    dist.all_gather(gathered, shared)
    assert owner(shared.data_ptr()) == pool._core.handle
    assert float(gathered[0].sum()) == 1000
    torch.cuda.synchronize()
assert inside == plain, (inside, plain)
dist.destroy_process_group()
pool._core.check()
"""


def test_distributed_data_parallel_with_nccl(tmp_path: object) -> None:
    if not torch.distributed.is_nccl_available():
        pytest.skip("this PyTorch has no NCCL")
    run_script(DDP, f"{tmp_path}/store", timeout_s=120)
