"""A pool on each of two GPUs of one process, and copies between them."""

from collections.abc import Iterator

import pytest
import torch
from helpers.gpu import ConvNet
from helpers.pools import MIB, is_in, is_native, run_script

from vramkit import MemoryPool

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

Pools = tuple[MemoryPool, MemoryPool]


@pytest.fixture
def pools(_clean_device: None) -> Iterator[Pools]:
    """One on each GPU; their invariants hold afterwards."""
    made = MemoryPool("256MiB", device="cuda:0"), MemoryPool("256MiB", device="cuda:1")
    yield made
    for index, pool in enumerate(made):
        torch.cuda.synchronize(index)
        pool._core.check()


def numbers(device: str) -> torch.Tensor:
    return torch.arange(4 * MIB, dtype=torch.int32, device=device)


def test_each_gets_its_device_s_tensors(pools: Pools) -> None:
    first, second = pools
    with first, second:
        tensors = torch.ones(1000, device="cuda:0"), torch.ones(1000, device="cuda:1")
        with torch.cuda.device(1):
            third = torch.ones(1000, device="cuda")
    assert (is_in(first, tensors[0]), is_in(second, tensors[1]), is_in(second, third)) == (
        True,
    ) * 3
    with second:
        assert is_native(torch.ones(1000, device="cuda:0"))


def test_copies_between_them(pools: Pools) -> None:
    first, second = pools
    with first, second:
        here = numbers("cuda:0")
        there = here.to("cuda:1")
        back = there.to("cuda:0")
    assert is_in(second, there)
    assert torch.equal(here, back)
    assert torch.equal(there.cpu(), here.cpu())


def test_copies_of_what_is_mapped_and_stitched_later(pools: Pools) -> None:
    first, second = pools
    with first, second:
        numbers("cuda:0").to("cuda:1")  # access is granted by now
        first.resize("512MiB")
        blocks = [torch.empty(32 * MIB, dtype=torch.uint8, device="cuda:0") for _ in range(16)]
        del blocks[::2]
        stitched = torch.randint(0, 256, (200 * MIB,), dtype=torch.uint8, device="cuda:0")
        assert first.stats().stitched_requests > 0
        assert torch.equal(stitched.to("cuda:1").cpu(), stitched.cpu())


def test_pools_that_are_made_after_the_first_copy() -> None:
    numbers("cuda:0").to("cuda:1")
    late = MemoryPool("64MiB", device="cuda:0"), MemoryPool("64MiB", device="cuda:1")
    with late[0], late[1]:
        here = numbers("cuda:0")
        there = here.to("cuda:1")
    assert is_in(late[1], there)
    assert torch.equal(there.cpu(), here.cpu())


def test_a_process_that_copied_before_its_first_pool() -> None:
    printed = run_script(
        """
        import torch
        from vramkit import MemoryPool

        torch.arange(1000, device="cuda:0").to("cuda:1")
        with MemoryPool("64MiB", device="cuda:0"), MemoryPool("64MiB", device="cuda:1"):
            here = torch.arange(3_000_000, dtype=torch.int32, device="cuda:0")
            there = here.to("cuda:1")
            print(bool((there.to("cuda:0") == here).all()))
        """
    )
    assert printed == "True\n"


def test_a_model_on_both(pools: Pools) -> None:
    """Layers on one GPU and on the other: activations and gradients cross over."""
    first, second = pools
    with first, second:
        model = ConvNet()
        model.body.to("cuda:0")
        model.head.to("cuda:1")
        loss = model.head(model.body(torch.randn(8, 3, 32, 32, device="cuda:0")).to("cuda:1")).sum()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
    assert all(each is not None and bool(each.isfinite().all()) for each in gradients)
    assert first.stats().peak_live_bytes > 0
    assert second.stats().peak_live_bytes > 0
