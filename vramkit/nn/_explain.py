"""What serves a call, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vramkit.errors import ArgumentTypeError
from vramkit.nn._candidates import describe
from vramkit.nn._fused import forward_key, waits_for_host
from vramkit.nn._modules import ConvReLUModule
from vramkit.nn._paths import Path, choose_path, needs_gradient
from vramkit.nn._selection import known
from vramkit.nn.functional import as_computed, geometry_of

_FORWARD = {
    Path.ONEDNN: "oneDNN's convolution with a fused ReLU",
    Path.BIAS: "PyTorch's convolution, then one vramkit pass for bias and ReLU",
    Path.MASK: "PyTorch's convolution, then one vramkit pass for ReLU and mask",
    Path.MASK_BIAS: "PyTorch's convolution, then one vramkit pass for bias, ReLU and mask",
}
_BACKWARD = {
    Path.BIAS: "one vramkit pass for the gradients of ReLU and bias, then PyTorch's convolution",
    Path.CHOSEN: (
        "one vramkit pass for the gradients of ReLU and bias, then the fastest for the others"
    ),
    Path.MASK: "one vramkit pass for the gradient of ReLU, then PyTorch's convolution",
    Path.MASK_BIAS: (
        "one vramkit pass for the gradients of ReLU and bias, then PyTorch's convolution"
    ),
}
_TORCH = "PyTorch's convolution, then an in-place ReLU"
_TORCH_BACKWARD = "PyTorch's gradients of ReLU and convolution"


@dataclass(frozen=True)
class Explanation:
    """What serves a call; ``print`` shows it in four lines.

    Attributes:
        forward: The kernels of the forward pass.
        backward: Those of the backward pass; None if no gradient is needed.
        saved: What ReLU keeps for its gradient; None if no gradient is needed.
        reason: Why these serve the call.
        tried: The kernels that were measured for the forward pass, with their milliseconds.
    """

    forward: str
    backward: str | None
    saved: str | None
    reason: str
    tried: str = ""

    def __str__(self) -> str:
        return (
            f"forward:  {self.forward}\nbackward: {self.backward or 'not needed'}\n"
            f"saved:    {self.saved or 'nothing'}\nbecause:  {self.reason}"
            + (f"\ntried:    {self.tried}" if self.tried else "")
        )


def explain(module: torch.nn.Module, input: Tensor) -> Explanation:  # noqa: A002 - torch's name
    """Return which kernels would serve ``module(input)`` under the current settings, and why.

    Args:
        module: A ``ConvReLU1d``, ``ConvReLU2d`` or ``ConvReLU3d``.
        input: What it would be called with; nothing is computed.

    Raises:
        ArgumentTypeError: ``module`` is something else.

    Example:
        >>> import torch
        >>> import vramkit
        >>> layer = vramkit.nn.ConvReLU2d(3, 8, 3, save="mask")
        >>> print(vramkit.nn.explain(layer, torch.randn(1, 3, 8, 8)).saved)
        one bit an element
    """
    if not isinstance(module, ConvReLUModule):
        raise ArgumentTypeError(
            f"explain() takes a ConvReLU module, got {type(module).__name__}; "
            "fuse_conv_relu() makes them of the pairs in a model"
        )
    padding: str | int | tuple[int, ...] = module.padding
    if module.padding_mode != "zeros":
        input = pad(input, module._reversed_padding_repeated_twice)  # noqa: A001
        padding = 0
    path = choose_path(
        *(input, module.weight, module.bias, module.stride, padding, module.dilation),
        *(module.groups, module.save),
    )
    forward, tried = _FORWARD.get(path, _TORCH), ""
    backward = _BACKWARD.get(path, _TORCH_BACKWARD)
    if path is Path.CHOSEN:
        forward, backward, tried = _explain_choice(module, input, padding)
    if not needs_gradient(input, module.weight, module.bias):
        return Explanation(forward, None, None, path.value, tried)
    masked = path in (Path.MASK, Path.MASK_BIAS, Path.COMPILED_MASK)
    saved = "one bit an element" if masked else "the output, which the next operation may share"
    return Explanation(forward, backward, saved, path.value, tried)


def _explain_choice(
    module: ConvReLUModule,
    input: Tensor,  # noqa: A002
    padding: str | int | tuple[int, ...],
) -> tuple[str, str, str]:
    """Return what was chosen for a call, forward and backward, and what was tried."""
    x, weight, bias = as_computed(input, module.weight, module.bias)
    at = geometry_of(weight, module.stride, padding, module.dilation, module.groups)
    choice = known(forward_key(x, weight, bias, at))
    backward = _BACKWARD[Path.CHOSEN]
    if choice is None:
        return "the fastest kernels, which the first call will measure", backward, ""
    if needs_gradient(input, module.weight, module.bias) and waits_for_host(choice):
        return f"{_TORCH}: so small a step waits for the host", _TORCH_BACKWARD, str(choice)
    return describe(choice.name, bias is not None), backward, str(choice)
