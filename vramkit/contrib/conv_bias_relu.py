"""The functions of ``apex.contrib.conv_bias_relu``, with the same names and argument orders.

apex (https://github.com/NVIDIA/apex) takes float16, channels-last tensors with at least cuDNN 8.4.
These functions take every dtype, memory format and device that PyTorch's convolution does, and any
padding, stride and number of dimensions. Under autocast they compute in autocast's dtype; otherwise
in that of their arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from vramkit.nn.functional import CONVOLUTIONS, conv_relu

__all__ = ["ConvBias", "ConvBiasMaskReLU", "ConvBiasReLU", "ConvFrozenScaleBiasReLU"]

Sizes = int | tuple[int, ...]


def ConvBiasReLU(  # noqa: N802 - apex's name
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sizes, stride: Sizes
) -> Tensor:
    """Compute ``relu(conv(x, weight) + bias)``.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(K, C, h, w)``.
        bias: ``(1, K, 1, 1)`` or ``(K,)``, or None for none.
        padding: One number, or one for each spatial dimension.
        stride: As ``padding``.

    Raises:
        RuntimeError: As PyTorch's convolution, for shapes and dtypes that do not fit.

    Example:
        >>> import torch
        >>> from vramkit.contrib.conv_bias_relu import ConvBiasReLU
        >>> x, weight = torch.ones(1, 1, 1, 2), torch.ones(2, 1, 1, 1)
        >>> ConvBiasReLU(x, weight, torch.tensor([-2.0, 1.0]).view(1, 2, 1, 1), 0, 1).flatten()
        tensor([0., 0., 2., 2.])
    """
    return conv_relu(x, weight, _flat(bias), stride, padding)


def ConvBias(  # noqa: N802 - apex's name
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sizes, stride: Sizes
) -> Tensor:
    """Compute ``conv(x, weight) + bias``.

    Args:
        x: As for :func:`ConvBiasReLU`, like all arguments.
        weight: ``(K, C, h, w)``.
        bias: ``(1, K, 1, 1)`` or ``(K,)``, or None for none.
        padding: One number, or one for each spatial dimension.
        stride: As ``padding``.

    Raises:
        RuntimeError: As PyTorch's convolution, for shapes and dtypes that do not fit.

    Example:
        >>> import torch
        >>> from vramkit.contrib.conv_bias_relu import ConvBias
        >>> ConvBias(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([-3.0]), 0, 1)
        tensor([[[[-2.]]]])
    """
    convolution = CONVOLUTIONS.get(weight.ndim, conv2d)
    return convolution(x, weight, _flat(bias), stride, padding)


def ConvBiasMaskReLU(  # noqa: N802 - apex's name
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, padding: Sizes, stride: Sizes
) -> Tensor:
    """Compute ``relu((conv(x, weight) + bias) * mask)``; the mask gets no gradient.

    Args:
        x: As for :func:`ConvBiasReLU`, like all arguments except ``mask``.
        weight: ``(K, C, h, w)``.
        bias: ``(1, K, 1, 1)`` or ``(K,)``, or None for none.
        mask: Of the output's shape or one that broadcasts to it; any dtype, such as int8.
        padding: One number, or one for each spatial dimension.
        stride: As ``padding``.

    Raises:
        RuntimeError: As PyTorch's convolution, for shapes and dtypes that do not fit; the mask's
            shape does not fit the output's.

    Example:
        >>> import torch
        >>> from vramkit.contrib.conv_bias_relu import ConvBiasMaskReLU
        >>> x, weight, mask = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 1), torch.tensor([0, 1])
        >>> ConvBiasMaskReLU(x, weight, torch.tensor([1.0]), mask, 0, 1).flatten()
        tensor([0., 2.])
    """
    output = ConvBias(x, weight, bias, padding, stride)
    return torch.relu_(output * mask.detach().to(output.dtype).expand_as(output))


def ConvFrozenScaleBiasReLU(  # noqa: N802 - apex's name
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, padding: Sizes, stride: Sizes
) -> Tensor:
    """Compute ``relu(conv(x, weight) * scale + bias)``, as with a frozen batch normalization.

    Scale and bias get no gradient. The weight is scaled in place of the output, which is smaller
    by far.

    Args:
        x: As for :func:`ConvBiasReLU`, like all arguments except ``scale``.
        weight: ``(K, C, h, w)``.
        scale: ``(1, K, 1, 1)`` or ``(K,)``.
        bias: ``(1, K, 1, 1)`` or ``(K,)``, or None for none.
        padding: One number, or one for each spatial dimension.
        stride: As ``padding``.

    Raises:
        RuntimeError: As PyTorch's convolution, for shapes and dtypes that do not fit.

    Example:
        >>> import torch
        >>> from vramkit.contrib.conv_bias_relu import ConvFrozenScaleBiasReLU
        >>> x, weight = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        >>> scale, bias = torch.tensor([3.0]), torch.tensor([-1.0])
        >>> ConvFrozenScaleBiasReLU(x, weight, scale, bias, 0, 1).item()
        2.0
    """
    factors = scale.detach().reshape(-1, *(1,) * (weight.ndim - 1)).to(weight.dtype)
    frozen = None if bias is None else bias.detach()
    return conv_relu(x, weight * factors, _flat(frozen), stride, padding)


def _flat(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.reshape(-1)
