"""Which device a pool is for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vramkit._core import DEVICE_CPU
from vramkit.errors import ArgumentTypeError, InvalidArgumentError, UnsupportedDeviceError

if TYPE_CHECKING:
    import torch

_CPU_INSTEAD = "pass device='cpu' for a pool of CPU tensors"


@dataclass(frozen=True)
class PoolDevice:
    """A device that can have pools: the CPU, or a CUDA device by its ordinal."""

    ordinal: int

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """Which allocator adapter serves it."""
        return "cpu" if self.ordinal == DEVICE_CPU else "cuda"

    @property
    def name(self) -> str:
        """As PyTorch writes it: ``cpu``, ``cuda:0``."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.ordinal}"

    @property
    def backend(self) -> str:
        """What the core calls its memory."""
        return "host" if self.kind == "cpu" else self.name


CPU = PoolDevice(DEVICE_CPU)


def pool_device(device: "torch.device | str | int | None") -> PoolDevice:
    """The device, checked to be one that can have a pool.

    Args:
        device: An integer is the CUDA device of that number; ``None`` is the current accelerator,
            or the CPU where there is none.

    Raises:
        ArgumentTypeError: ``device`` is of another type.
        InvalidArgumentError: PyTorch knows no such device, or this machine has none of that number.
        UnsupportedDeviceError: There is no pool for that device, in this version or here.
        RuntimeError: CUDA was started before this process was forked.
    """
    import torch

    if device is None:
        return _accelerator()
    parsed = _parse(device)
    if parsed.type == "cpu":
        return CPU
    if parsed.type != "cuda":
        raise UnsupportedDeviceError(
            f"device={_shown(device)}: vramkit has pools for CUDA devices and the CPU only; "
            f"{_CPU_INSTEAD}"
        )
    _refuse_forked_child()
    if torch.version.hip is not None or not torch.cuda.is_available():
        raise UnsupportedDeviceError(
            f"device={_shown(device)}: {_why_no_cuda()}; {_CPU_INSTEAD}, or device=None for a GPU "
            "where there is one and the CPU elsewhere"
        )
    return _cuda_device(device, parsed.index)


def _accelerator() -> PoolDevice:
    import torch

    # PyTorch counts no devices in such a child: the CPU would stand in silently.
    _refuse_forked_child()
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return CPU
    if found.type != "cuda" or torch.version.hip is not None:
        raise UnsupportedDeviceError(
            f"device=None is this machine's accelerator, {found.type!r}, and vramkit has pools for "
            f"CUDA devices and the CPU only; {_CPU_INSTEAD}"
        )
    return PoolDevice(torch.cuda.current_device())


def _cuda_device(device: "torch.device | str | int", ordinal: int | None) -> PoolDevice:
    import torch

    count = torch.cuda.device_count()
    if ordinal is None:
        return PoolDevice(torch.cuda.current_device())
    if ordinal >= count:
        raise InvalidArgumentError(
            f"device={_shown(device)}: there is no CUDA device {ordinal}; this process sees "
            f"{count}, numbered from 0 (CUDA_VISIBLE_DEVICES limits them)"
        )
    return PoolDevice(ordinal)


def _refuse_forked_child() -> None:
    import torch

    if torch.cuda._is_in_bad_fork():
        torch.cuda.init()  # raises PyTorch's own error


def _why_no_cuda() -> str:
    import torch

    if torch.version.hip is not None:
        return "vramkit's pools need NVIDIA's CUDA, and this PyTorch is built for ROCm"
    if not torch.backends.cuda.is_built():
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    return "PyTorch finds no CUDA device that it can use here (no GPU, or no driver)"


def _parse(device: "torch.device | str | int") -> "torch.device":
    import torch

    if isinstance(device, torch.device):
        return device
    if isinstance(device, bool) or not isinstance(device, str | int):
        raise ArgumentTypeError(
            "device must be a torch.device, a text such as 'cuda:0' or 'cpu', the number of a CUDA "
            f"device, or None, got {device!r} of type {type(device).__name__}"
        )
    if isinstance(device, int):
        if device < 0:
            raise InvalidArgumentError(f"device={device}: CUDA devices are numbered from 0")
        return torch.device("cuda", device)
    try:
        return torch.device(device)
    except RuntimeError as err:
        raise InvalidArgumentError(f"device={device!r} is no device of PyTorch: {err}") from err


def _shown(device: "torch.device | str | int") -> str:
    return repr(device) if isinstance(device, int) else repr(str(device))
