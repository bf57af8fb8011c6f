"""What the tests on a GPU share: a clean start, small networks, waiting for the pool."""

import ctypes
import gc
import time
from collections.abc import Callable

import torch
from torch import nn

from vramkit import MemoryPool

# About two seconds on any GPU of today: longer than the host needs to queue a few small steps.
LONG_SLEEP_CYCLES = 4_000_000_000
SHORT_SLEEP_CYCLES = 200_000_000


class RawStream:
    """A stream that PyTorch did not make. It goes when it is told to."""

    def __init__(self) -> None:
        """Make one that does not wait for the default stream."""
        torch.cuda.synchronize()  # the device's context is current in this thread from now on
        self._driver = ctypes.CDLL("libcuda.so.1")
        handle = ctypes.c_void_p()
        non_blocking = ctypes.c_uint(1)
        assert self._driver.cuStreamCreate(ctypes.byref(handle), non_blocking) == 0
        assert handle.value is not None
        self._handle = handle

    def in_torch(self) -> torch.cuda.ExternalStream:
        """The stream as PyTorch sees it."""
        return torch.cuda.ExternalStream(self._handle.value)

    def destroy(self) -> None:
        """Returns at once; the stream's work goes on."""
        assert self._driver.cuStreamDestroy_v2(self._handle) == 0


def clean() -> None:
    """Drop what libraries keep: made in one test's pool, it would keep that alive."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def free_bytes() -> int:
    """The device's free memory, with nothing of PyTorch's cached."""
    clean()
    return torch.cuda.mem_get_info()[0]


def assert_given_back(before_bytes: int) -> None:
    """The device has as much free as before: no page of 4 MiB less.

    Kernels that were loaded in between take less. The driver tears a process down on its own time.
    """
    deadline = time.monotonic() + 10
    while before_bytes - free_bytes() >= 4 << 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert before_bytes - free_bytes() < 4 << 20


def bytes_on_gpu(size: int) -> torch.Tensor:
    """A tensor of that many bytes."""
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def wait_until_mapped(pool: MemoryPool) -> None:
    """Wait for the background: until then its mapping calls are counted too."""
    deadline = time.monotonic() + 60
    while pool.stats().mapped_bytes < pool.stats().capacity_bytes:
        assert time.monotonic() < deadline, "the pool is not mapped in the background"
        time.sleep(0.005)


class ConvNet(nn.Module):
    """Convolutions, batch norm, a linear head: cuDNN, cuBLAS and pointwise kernels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes."""
        return self.head(self.body(x))


def make_step(
    model: nn.Module, *, batch: int = 16, size: int = 32, autocast: bool = False
) -> Callable[[], torch.Tensor]:
    """A training step on fresh random images; it returns the loss and does not wait for it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> torch.Tensor:
        x = torch.randn(batch, 3, size, size, device="cuda")
        y = torch.randint(0, 10, (batch,), device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def train(steps: int = 8, *, autocast: bool = False, channels_last: bool = False) -> list[float]:
    """Train a fresh network from a fixed seed; the losses."""
    torch.manual_seed(7)
    model = ConvNet().cuda()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    step = make_step(model, autocast=autocast)
    return torch.stack([step() for _ in range(steps)]).tolist()
