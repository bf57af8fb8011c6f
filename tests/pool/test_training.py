"""Networks trained inside a pool: the same bits, compiled too, and out of memory at every point."""

import shutil
import threading
from collections.abc import Callable

import pytest
import torch
from helpers.pools import is_in, run_script
from torch import nn

from vramkit import MemoryPool


def _conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def _transformer() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2),
        nn.Linear(16 * 16, 64),
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x[:, 0])[0][:, -1])


def _train(make: Callable[[], nn.Module], steps: int = 6) -> list[float]:
    torch.manual_seed(11)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(12, 1, 16, 16), torch.randint(0, 10, (12,))
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", [_conv_net, _transformer, _Recurrent])
@pytest.mark.parametrize("threads", [1, 2])
def test_losses_are_bit_identical(
    pool: MemoryPool, make: Callable[[], nn.Module], threads: int
) -> None:
    torch.set_num_threads(threads)
    outside = _train(make)
    with pool:
        inside = _train(make)
    assert inside == outside
    assert pool.stats().allocations > 100


def test_gradients_and_optimizer_state_live_in_the_pool(pool: MemoryPool) -> None:
    with pool:
        model = nn.Linear(200, 200)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.randn(5, 200)).sum().backward()
        optimizer.step()
    assert model.weight.grad is not None
    assert is_in(pool, model.weight)
    assert is_in(pool, model.weight.grad)
    assert is_in(pool, optimizer.state[model.weight]["exp_avg"])


def test_backward_in_several_threads(pool: MemoryPool) -> None:
    sums: list[float] = []

    def work(seed: int) -> None:
        data = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
        weight = torch.ones(64, 64, requires_grad=True)
        for _ in range(5):
            torch.tanh(data @ weight).sum().backward()
        assert weight.grad is not None
        sums.append(weight.grad.sum().item())

    for seed in range(4):
        work(seed)
    outside = sorted(sums)
    sums.clear()
    with pool:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(sums) == outside


def test_checkpointing_and_hooks(pool: MemoryPool) -> None:
    seen: list[bool] = []

    def run() -> torch.Tensor:
        torch.manual_seed(2)
        layer = nn.Linear(50, 50)
        layer.weight.register_hook(lambda grad: seen.append(is_in(pool, grad)))
        x = torch.randn(9, 50, requires_grad=True)
        y = torch.utils.checkpoint.checkpoint(lambda t: layer(t).relu(), x, use_reentrant=False)
        y.sum().backward()
        assert x.grad is not None
        return x.grad

    outside = run()
    with pool:
        inside = run()
    assert torch.equal(outside, inside)
    assert seen == [False, True]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code(pool: MemoryPool) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler for torch.compile")

    def step(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w).sin().sum(1)

    compiled = torch.compile(step)
    x, w = torch.randn(64, 64), torch.randn(64, 64, requires_grad=True)
    first = compiled(x, w)
    with pool:
        second = compiled(x, w)
        second.sum().backward()
        fresh = torch.compile(lambda t: (t * 2).cos())(x)
    assert torch.equal(first, second)
    assert torch.allclose(second, step(x, w))
    assert torch.allclose(fresh, (x * 2).cos())
    assert w.grad is not None
    assert is_in(pool, second)


def test_scripted_and_frozen_code(pool: MemoryPool) -> None:
    model = _conv_net().eval()
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        expected = model(x)
        with pool:
            inside = torch.func.functional_call(model, dict(model.named_parameters()), (x,))
    assert torch.equal(expected, inside)


FAULTS = """
import ctypes, gc, sys
import torch
from torch import nn
from vramkit import MemoryPool
from vramkit._core import _library, _structs, owner
import vramkit._build

torch.set_num_threads(1)

# The core's table, with an allocation function that fails at the n-th call.
real = _library.library().vramkit_core().contents
table = _structs.CoreApi.from_buffer_copy(real)
ROUTE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32,
    ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_void_p),
)
route, last_error = ROUTE(real.route_alloc), ctypes.CFUNCTYPE(ctypes.c_void_p)(real.last_error)
text = ctypes.create_string_buffer(b"cpu: injected")
left, seen, failing = 0, 0, False

@ROUTE
def route_alloc(*arguments):
    global left, seen, failing
    seen += 1
    left -= 1
    failing = left == 0
    return _structs.Status.OUT_OF_MEMORY if failing else route(*arguments)

@ctypes.CFUNCTYPE(ctypes.c_void_p)
def error_text():
    return ctypes.addressof(text) if failing else last_error()

table.route_alloc = ctypes.cast(route_alloc, ctypes.c_void_p).value
table.last_error = ctypes.cast(error_text, ctypes.c_void_p).value
adapter = ctypes.CDLL(str(vramkit._build.adapter_path("cpu")))
adapter.vramkit_adapter_install.restype = ctypes.c_char_p
assert adapter.vramkit_adapter_install(ctypes.byref(table)) is None
pool = MemoryPool("128MiB", device="cpu")  # finds the adapter installed

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.lstm = nn.LSTM(16, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        y = self.norm(self.conv(x.to(memory_format=torch.channels_last))).relu()
        y = self.encoder(y.mean(1))
        return self.head(self.lstm(y)[0][:, -1])

def step(model, optimizer):
    x, y = torch.randn(4, 3, 8, 16), torch.randint(0, 4, (4,))
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()

with pool:
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        step(model, optimizer)
    seen = 0
    step(model, optimizer)
    points = seen
    assert points > 150, points
    for n in range(1, points + 1):
        left = n
        try:
            step(model, optimizer)
        except torch.OutOfMemoryError as err:
            words = "DefaultCPUAllocator: can't allocate memory. cpu: injected"
            assert str(err) == words, str(err)
        else:
            raise AssertionError(f"allocation {n} of {points} did not fail")
        left = 0
    gc.collect()
    before = pool.stats().live_bytes
    assert step(model, optimizer) > 0
    assert pool.stats().live_bytes == before
pool._core.check()
print(points)
"""


def test_out_of_memory_at_every_allocation_of_a_step() -> None:
    assert int(run_script(FAULTS, timeout_s=300)) > 150
