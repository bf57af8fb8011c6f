"""The modules: torch's convolutions, followed by ReLU."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.common_types import _size_1_t, _size_2_t, _size_3_t
from torch.nn.functional import pad

from vramkit.nn._paths import Save
from vramkit.nn.functional import check_save, conv_relu

# torch.fx records a call of it, for the forward pass of the modules.
torch.fx.wrap("conv_relu")
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class ConvReLUModule(nn.modules.conv._ConvNd):
    """What the modules share; it comes before torch's class among their bases."""

    save: Save = "output"

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            repeats = self._reversed_padding_repeated_twice
            input = pad(input, repeats, mode=self.padding_mode)  # noqa: A001
            padding = 0
        return conv_relu(
            *(input, weight, bias, self.stride, padding, self.dilation, self.groups),
            save=self.save,
        )

    def extra_repr(self) -> str:
        """Return the arguments, those with default values only if torch shows them too."""
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return text if self.save == "output" else f"{text}, save={self.save!r}"


class ConvReLU1d(ConvReLUModule, nn.Conv1d):
    """``nn.Conv1d`` and ``nn.ReLU`` in one module.

    All arguments, attributes, initial values, errors and keys of the ``state_dict`` (``weight``,
    ``bias``) are those of ``nn.Conv1d``, of which it is a subclass. Every dtype, memory format and
    device works, as do autocast, ``torch.compile``, ``torch.export``, checkpointing and second
    derivatives.

    Args:
        in_channels: As for ``nn.Conv1d``, like all arguments up to ``dtype``.
        out_channels: Channels of the output.
        kernel_size: One number, or a tuple of one.
        stride: As ``kernel_size``.
        padding: As ``kernel_size``, or ``"valid"`` or ``"same"``.
        dilation: As ``kernel_size``.
        groups: Number of groups of channels.
        bias: Whether to add a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: Where the parameters are created.
        dtype: The dtype of the parameters.
        save: What is kept for ReLU's gradient. ``"output"`` costs nothing where the next operation
            keeps its input anyway, as convolutions, pools and linear layers do. ``"mask"`` keeps
            one bit an element, and pays where the next operation keeps nothing: addition,
            concatenation, upsampling, a mean.

    Shape:
        ``(N, C, L)`` to ``(N, K, L')``, or both without ``N``.

    Raises:
        ValueError: As ``nn.Conv1d``; as ``InvalidArgumentError`` for ``save``.

    Example:
        >>> import torch
        >>> import vramkit
        >>> layer = vramkit.nn.ConvReLU1d(3, 8, kernel_size=3, padding=1)
        >>> layer(torch.randn(2, 3, 5)).min() >= 0
        tensor(True)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_1_t,
        stride: _size_1_t = 1,
        padding: _size_1_t | str = 0,
        dilation: _size_1_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        save: Save = "output",
    ) -> None:
        check_save(save)
        nn.Conv1d.__init__(
            *(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups),
            *(bias, padding_mode, device, dtype),
        )
        self.save = save


class ConvReLU2d(ConvReLUModule, nn.Conv2d):
    """``nn.Conv2d`` and ``nn.ReLU`` in one module.

    All arguments, attributes, initial values, errors and keys of the ``state_dict`` (``weight``,
    ``bias``) are those of ``nn.Conv2d``, of which it is a subclass. Every dtype, memory format and
    device works, as do autocast, ``torch.compile``, ``torch.export``, checkpointing and second
    derivatives.

    Args:
        in_channels: As for ``nn.Conv2d``, like all arguments up to ``dtype``.
        out_channels: Channels of the output.
        kernel_size: One number, or one for each spatial dimension.
        stride: As ``kernel_size``.
        padding: As ``kernel_size``, or ``"valid"`` or ``"same"``.
        dilation: As ``kernel_size``.
        groups: Number of groups of channels.
        bias: Whether to add a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: Where the parameters are created.
        dtype: The dtype of the parameters.
        save: What is kept for ReLU's gradient. ``"output"`` costs nothing where the next operation
            keeps its input anyway, as convolutions, pools and linear layers do. ``"mask"`` keeps
            one bit an element, and pays where the next operation keeps nothing: addition,
            concatenation, upsampling, a mean.

    Shape:
        ``(N, C, H, W)`` to ``(N, K, H', W')``, or both without ``N``.

    Raises:
        ValueError: As ``nn.Conv2d``; as ``InvalidArgumentError`` for ``save``.

    Example:
        >>> import torch
        >>> import vramkit
        >>> layer = vramkit.nn.ConvReLU2d(3, 8, kernel_size=3, padding=1)
        >>> layer(torch.randn(2, 3, 5, 5)).min() >= 0
        tensor(True)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | str = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        save: Save = "output",
    ) -> None:
        check_save(save)
        nn.Conv2d.__init__(
            *(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups),
            *(bias, padding_mode, device, dtype),
        )
        self.save = save


class ConvReLU3d(ConvReLUModule, nn.Conv3d):
    """``nn.Conv3d`` and ``nn.ReLU`` in one module.

    All arguments, attributes, initial values, errors and keys of the ``state_dict`` (``weight``,
    ``bias``) are those of ``nn.Conv3d``, of which it is a subclass. Every dtype, memory format and
    device works, as do autocast, ``torch.compile``, ``torch.export``, checkpointing and second
    derivatives.

    Args:
        in_channels: As for ``nn.Conv3d``, like all arguments up to ``dtype``.
        out_channels: Channels of the output.
        kernel_size: One number, or one for each spatial dimension.
        stride: As ``kernel_size``.
        padding: As ``kernel_size``, or ``"valid"`` or ``"same"``.
        dilation: As ``kernel_size``.
        groups: Number of groups of channels.
        bias: Whether to add a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: Where the parameters are created.
        dtype: The dtype of the parameters.
        save: What is kept for ReLU's gradient. ``"output"`` costs nothing where the next operation
            keeps its input anyway, as convolutions, pools and linear layers do. ``"mask"`` keeps
            one bit an element, and pays where the next operation keeps nothing: addition,
            concatenation, upsampling, a mean.

    Shape:
        ``(N, C, D, H, W)`` to ``(N, K, D', H', W')``, or both without ``N``.

    Raises:
        ValueError: As ``nn.Conv3d``; as ``InvalidArgumentError`` for ``save``.

    Example:
        >>> import torch
        >>> import vramkit
        >>> layer = vramkit.nn.ConvReLU3d(3, 8, kernel_size=3, padding=1)
        >>> layer(torch.randn(2, 3, 5, 5, 5)).min() >= 0
        tensor(True)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_3_t,
        stride: _size_3_t = 1,
        padding: _size_3_t | str = 0,
        dilation: _size_3_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        save: Save = "output",
    ) -> None:
        check_save(save)
        nn.Conv3d.__init__(
            *(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups),
            *(bias, padding_mode, device, dtype),
        )
        self.save = save


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: ConvReLU1d,
    nn.Conv2d: ConvReLU2d,
    nn.Conv3d: ConvReLU3d,
}


def with_relu(convolution: nn.Module, save: Save) -> nn.Module:
    """Return a fused module with all attributes of a convolution, and the same parameters."""
    kind = _FUSED[type(convolution)]
    fused = kind.__new__(kind)
    for name, value in convolution.__dict__.items():
        fused.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
    fused.__dict__["save"] = save
    return fused
