import pytest
import torch

from vramkit import MemoryPool
from vramkit.errors import InvalidArgumentError, UnsupportedDeviceError
from vramkit.pool._device import require_cpu


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_has_pools(device: str | torch.device) -> None:
    require_cpu(device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0), "meta", "mps"])
def test_other_devices_have_none_and_the_cpu_is_no_substitute(device: str | torch.device) -> None:
    with pytest.raises(UnsupportedDeviceError) as caught:
        MemoryPool("64MiB", device=device)
    assert str(caught.value) == (
        f"device={str(device)!r}: this version of vramkit has pools for the CPU only; "
        "pass device='cpu' for a pool of CPU tensors"
    )


def test_none_is_the_cpu_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert "device='cpu'" in repr(MemoryPool("64MiB"))


def test_none_is_the_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    with pytest.raises(
        UnsupportedDeviceError,
        match=r"device=None is this machine's accelerator, 'cuda', .* pass device='cpu'",
    ):
        MemoryPool("64MiB")


def test_no_device_at_all() -> None:
    with pytest.raises(InvalidArgumentError, match="device='gpu' is no device of PyTorch"):
        require_cpu("gpu")
    with pytest.raises(TypeError, match="or None, got 0 of type int"):
        require_cpu(0)  # type: ignore[arg-type]
