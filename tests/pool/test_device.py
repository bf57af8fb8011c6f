import pytest
import torch

from vramkit import MemoryPool
from vramkit.errors import InvalidArgumentError, UnsupportedDeviceError
from vramkit.pool._device import CPU, PoolDevice, pool_device

FORKED = "Cannot re-initialize CUDA in forked subprocess"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch says that there are two CUDA devices, and that the second is the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu(device: str | torch.device) -> None:
    assert pool_device(device) == CPU
    assert (CPU.kind, CPU.name, CPU.backend) == ("cpu", "cpu", "host")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "ordinal"),
    [
        ("cuda", 1),
        (torch.device("cuda"), 1),
        ("cuda:0", 0),
        ("cuda:1", 1),
        (torch.device("cuda", 1), 1),
        (0, 0),
        (1, 1),
    ],
)
def test_cuda_devices(device: str | int | torch.device, ordinal: int) -> None:
    found = pool_device(device)
    assert found == PoolDevice(ordinal)
    assert (found.kind, found.name, found.backend) == (
        "cuda",
        f"cuda:{ordinal}",
        f"cuda:{ordinal}",
    )


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["cuda:2", 2, torch.device("cuda", 7)])
def test_a_cuda_device_that_is_not_there(device: str | int | torch.device) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"there is no CUDA device \d; this process sees 2"
    ):
        pool_device(device)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0), 0])
def test_without_a_gpu_the_cpu_is_no_substitute(device: str | int | torch.device) -> None:
    shown = device if isinstance(device, int) else repr(str(device))
    with pytest.raises(UnsupportedDeviceError) as caught:
        MemoryPool("64MiB", device=device)
    assert str(caught.value).startswith(f"device={shown}: ")
    assert str(caught.value).endswith(
        "; pass device='cpu' for a pool of CPU tensors, or device=None for a GPU where there is "
        "one and the CPU elsewhere"
    )


@pytest.mark.usefixtures("no_gpu")
def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(UnsupportedDeviceError, match=r"this PyTorch \(.*\) is built without CUDA"):
        pool_device("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(
        UnsupportedDeviceError, match=r"finds no CUDA device .* \(no GPU, or no driv"
    ):
        pool_device("cuda")
    monkeypatch.setattr(torch.version, "hip", "7.1")
    with pytest.raises(UnsupportedDeviceError, match="this PyTorch is built for ROCm"):
        pool_device("cuda")


@pytest.mark.parametrize("device", ["meta", "mps", torch.device("xpu")])
def test_other_devices_have_none(device: str | torch.device) -> None:
    with pytest.raises(UnsupportedDeviceError) as caught:
        MemoryPool("64MiB", device=device)
    assert str(caught.value) == (
        f"device={str(device)!r}: vramkit has pools for CUDA devices and the CPU only; "
        "pass device='cpu' for a pool of CPU tensors"
    )


@pytest.mark.usefixtures("no_gpu")
def test_none_is_the_cpu_without_an_accelerator() -> None:
    assert "device='cpu'" in repr(MemoryPool("64MiB"))


@pytest.mark.usefixtures("two_gpus")
def test_none_is_the_current_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    assert pool_device(None) == PoolDevice(1)


def test_none_is_no_other_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("xpu"))
    with pytest.raises(
        UnsupportedDeviceError,
        match=r"device=None is this machine's accelerator, 'xpu', .* pass device='cpu'",
    ):
        pool_device(None)


@pytest.mark.parametrize("device", [None, "cuda", 0])
def test_a_forked_child_gets_the_error_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, device: str | int | None
) -> None:
    def init() -> None:
        raise RuntimeError(FORKED)

    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(RuntimeError, match=FORKED):
        pool_device(device)
    assert pool_device("cpu") == CPU


def test_no_device_at_all() -> None:
    with pytest.raises(InvalidArgumentError, match="device='gpu' is no device of PyTorch"):
        pool_device("gpu")
    with pytest.raises(InvalidArgumentError, match="device=-1: CUDA devices are numbered from 0"):
        pool_device(-1)
    for wrong in (True, 1.0, [0]):
        with pytest.raises(TypeError, match=r"or None, got .* of type"):
            pool_device(wrong)  # type: ignore[arg-type]
