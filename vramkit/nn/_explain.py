"""What serves a call, and why."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv2d, pad

from vramkit.errors import ArgumentTypeError
from vramkit.nn._candidates import Geometry, describe
from vramkit.nn._fused import forward_key, node_of
from vramkit.nn._modules import ConvReLUModule
from vramkit.nn._paths import Path, choose_path, is_plain, is_transformed, needs_gradient
from vramkit.nn._selection import Choice, known
from vramkit.nn.functional import CONVOLUTIONS, as_computed, geometry_of

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
_OWN_NODES = (Path.BIAS, Path.CHOSEN, Path.MASK, Path.MASK_BIAS)
_CHOOSES = "the fastest kernels, which the first call will measure"
_TORCH = "PyTorch's convolution, then an in-place ReLU"
_TORCH_BACKWARD = "PyTorch's gradients of ReLU and convolution"


@dataclass(frozen=True)
class Explanation:
    """What serves a call; ``print`` shows it in four lines or more.

    Attributes:
        forward: The kernels of the forward pass.
        backward: Those of the backward pass; None if no gradient is needed.
        saved: What ReLU keeps for its gradient; None if no gradient is needed.
        reason: Why these serve the call.
        tried: The kernels that were measured for the forward pass, with their milliseconds.
        node: Which nodes autograd records: ``"PyTorch"``'s, vramkit's in ``"C++"``, or vramkit's in
            ``"Python, because ..."``, which cost the host more and are printed for that reason;
            None if no gradient is needed.
    """

    forward: str
    backward: str | None
    saved: str | None
    reason: str
    tried: str = ""
    node: str | None = None

    def __str__(self) -> str:
        return (
            f"forward:  {self.forward}\nbackward: {self.backward or 'not needed'}\n"
            f"saved:    {self.saved or 'nothing'}\nbecause:  {self.reason}"
            + (f"\ntried:    {self.tried}" if self.tried else "")
            + (f"\nnode:     {self.node}" if (self.node or "").startswith("Python") else "")
        )


def explain(module: torch.nn.Module, input: Tensor) -> Explanation:  # noqa: A002 - torch's name
    """Return which kernels would serve ``module(input)`` under the current settings, and why.

    Args:
        module: A ``ConvReLU1d``, ``ConvReLU2d`` or ``ConvReLU3d``.
        input: What it would be called with. Its convolution runs on tensors without data, so that
            explain() raises what the call would raise.

    Raises:
        ArgumentTypeError: ``module`` is something else.
        RuntimeError: As the call, for shapes and dtypes that do not fit.

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
    if not isinstance(input, Tensor):
        raise ArgumentTypeError(f"explain() takes an input tensor, got {type(input).__name__}")
    padding: str | int | tuple[int, ...] = module.padding
    if module.padding_mode != "zeros":
        repeats = module._reversed_padding_repeated_twice
        input = pad(input, repeats, mode=module.padding_mode)  # noqa: A001
        padding = 0
    _check_call(module, input, padding)
    path = choose_path(
        *(input, module.weight, module.bias, module.stride, padding, module.dilation),
        *(module.groups, module.save),
    )
    forward, tried = _FORWARD.get(path, _TORCH), ""
    gradient = needs_gradient(input, module.weight, module.bias)
    node = _node(path) if gradient else None
    if path is Path.CHOSEN:
        choice, at = _choice(module, input, padding)
        forward = _CHOOSES if choice is None else describe(choice.name, module.bias is not None)
        tried = "" if choice is None else str(choice)
        node = node_of(choice, at) if gradient and choice is not None else node
    if not gradient:
        return Explanation(forward, None, None, path.value, tried)
    masked = path in (Path.MASK, Path.MASK_BIAS, Path.COMPILED_MASK)
    saved = "one bit an element" if masked else "the output, which the next operation may share"
    backward = _BACKWARD.get(path, _TORCH_BACKWARD)
    return Explanation(forward, backward, saved, path.value, tried, node)


def _check_call(module: ConvReLUModule, x: Tensor, padding: str | int | tuple[int, ...]) -> None:
    """Raise what the module's convolution raises, for plain tensors."""
    tensors = [each for each in (x, module.weight, module.bias) if each is not None]
    if torch.compiler.is_compiling() or not all(map(is_plain, tensors)) or is_transformed():
        return
    # Fake tensors do not report other devices or dtypes of the weight as real ones do, where the
    # call fails at once.
    weight = module.weight
    alike = x.device == weight.device and _computed(x) == _computed(weight)
    fake = FakeTensorMode() if alike else None
    # Autocast would keep what it casts of a tensor that needs a gradient.
    tensors = [each.detach() for each in tensors]
    if fake is not None:
        tensors = [fake.from_tensor(each) for each in tensors]
    first, second, *bias = tensors
    convolution = CONVOLUTIONS.get(weight.ndim, conv2d)
    stride, dilation = module.stride, module.dilation
    with torch.no_grad(), fake or nullcontext():
        convolution(
            first, second, bias[0] if bias else None, stride, padding, dilation, module.groups
        )


def _computed(tensor: Tensor) -> torch.dtype:
    """Return the dtype that a convolution takes of a tensor; autocast leaves float64 as it is."""
    kind = tensor.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if casts and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def _node(path: Path) -> str:
    """Return whose node serves a path, whatever was chosen."""
    return node_of() if path in _OWN_NODES else "PyTorch"


def _choice(
    module: ConvReLUModule,
    input: Tensor,  # noqa: A002
    padding: str | int | tuple[int, ...],
) -> tuple[Choice | None, Geometry]:
    """Return what was chosen for a call, if anything was yet, and where the convolution reads."""
    x, weight, bias = as_computed(input, module.weight, module.bias)
    at = geometry_of(weight, module.stride, padding, module.dilation, module.groups)
    return known(forward_key(x, weight, bias, at)), at
