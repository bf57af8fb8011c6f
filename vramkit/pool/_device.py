"""Which device a pool is for."""

from typing import TYPE_CHECKING

from vramkit.errors import InvalidArgumentError, UnsupportedDeviceError

if TYPE_CHECKING:
    import torch

_NEXT_STEP = "pass device='cpu' for a pool of CPU tensors"


def require_cpu(device: "torch.device | str | None") -> None:
    """Check that a pool for ``device`` can be made.

    Args:
        device: ``None`` is the current accelerator, or the CPU where there is none.

    Raises:
        TypeError: ``device`` is of another type.
        InvalidArgumentError: PyTorch knows no such device.
        UnsupportedDeviceError: There is no pool for that device in this version.
    """
    import torch

    if device is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is not None:
            raise UnsupportedDeviceError(
                f"device=None is this machine's accelerator, {found.type!r}, and this version of "
                f"vramkit has pools for the CPU only; {_NEXT_STEP}"
            )
        return
    kind = _parse(device).type
    if kind != "cpu":
        raise UnsupportedDeviceError(
            f"device={str(device)!r}: this version of vramkit has pools for the CPU only; "
            f"{_NEXT_STEP}"
        )


def _parse(device: "torch.device | str") -> "torch.device":
    import torch

    if isinstance(device, torch.device):
        return device
    if not isinstance(device, str):
        raise TypeError(
            "device must be a torch.device, a text such as 'cpu', or None, got "
            f"{device!r} of type {type(device).__name__}"
        )
    try:
        return torch.device(device)
    except RuntimeError as err:
        raise InvalidArgumentError(f"device={device!r} is no device of PyTorch: {err}") from err
