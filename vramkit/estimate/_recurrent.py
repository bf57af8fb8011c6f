"""``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` as a build with CUDA runs them: by cuDNN, on every build.

A build for CPUs has no kernel behind their operators, and a fake tensor has no addresses by which
PyTorch tells whether weights are parts of one buffer. What is written here in Python is C++ there
(ATen/native/cudnn/RNN.cpp, ATen/cudnn/AutocastRNN.cpp).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from vramkit.errors import UntraceableError
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._ops import _cudnn_rnn as rnn
from vramkit.estimate._packed import Known, known_sizes

_aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_NAMES = {
    "lstm": rnn.LSTM,
    "gru": rnn.GRU,
    "rnn_tanh": rnn.RNN_TANH,
    "rnn_relu": rnn.RNN_RELU,
}
_MODES = {
    "LSTM": rnn.LSTM,
    "GRU": rnn.GRU,
    "RNN_TANH": rnn.RNN_TANH,
    "RNN_RELU": rnn.RNN_RELU,
}
# torch.backends.cudnn.CUDNN_TENSOR_DTYPES: weights of other dtypes are never put together.
_FLATTENED = (torch.float16, torch.float32, torch.float64)
_NOT_FLAT = (
    "RNN module weights are not part of single contiguous chunk of memory. This means they need "
    "to be compacted at every call, possibly greatly increasing memory usage. To compact weights "
    "again call flatten_parameters()."
)

Composite = Callable[..., Any]


class Recorder(Protocol):
    """Records what an operator allocates."""

    def record(self, args: Any, kwargs: Any, outputs: tuple[Any, ...]) -> None:
        """Record the births of its results, and what it allocates inside."""


def composites(known: Known) -> dict[str, Composite]:
    """Return what the operators of recurrent layers do, by their names.

    Args:
        known: Returns the values of a tensor, or None where they depend on data.
    """
    found: dict[str, Composite] = {}
    for name, mode in _NAMES.items():
        found[f"{name}.input"] = _of_sequences(name, mode)
        found[f"{name}.data"] = _of_packed(name, mode, known)
    return found


def _of_sequences(name: str, mode: int) -> Composite:
    def run(
        input_: Any,
        state: Any,
        parameters: Sequence[Any],
        biased: bool,
        layers: int,
        dropout: float,
        trains: bool,
        both: bool,
        batch_first: bool,
    ) -> Any:
        options = (biased, layers, dropout, trains, both, batch_first)
        if not torch.cudnn_is_acceptable(input_):
            function = getattr(_aten, name).input
            return function._op_dk(_COMPOSITE, input_, state, parameters, *options)
        return _run(mode, input_, state, parameters, (*options, ()))

    return run


def _of_packed(name: str, mode: int, known: Known) -> Composite:
    def run(
        data: Any,
        batch_sizes: Any,
        state: Any,
        parameters: Sequence[Any],
        biased: bool,
        layers: int,
        dropout: float,
        trains: bool,
        both: bool,
    ) -> Any:
        sizes = known_sizes(batch_sizes, known)
        if not torch.cudnn_is_acceptable(data):
            raise UntraceableError(
                f"{line_of_caller()} runs {name} on a packed sequence without cuDNN, which is not "
                "followed, so its memory cannot be known; leave torch.backends.cudnn enabled"
            )
        options = (biased, layers, dropout, trains, both, False, tuple(sizes))
        return _run(mode, data, state, parameters, options)

    return run


def _run(
    mode: int, input_: Any, state: Any, parameters: Sequence[Any], options: tuple[Any, ...]
) -> Any:
    biased, layers, dropout, trains, both, batch_first, sizes = options
    hx, cx = state if mode == rnn.LSTM else (state, None)
    hidden, projected = hx.shape[2], 0
    if cx is not None and cx.shape[2] != hidden:
        hidden, projected = cx.shape[2], hx.shape[2]
    stride = (4 if biased else 2) + bool(projected)
    shape = (mode, hidden, projected, layers, batch_first, dropout, trains, both, sizes)
    what = rnn.layers_of(input_, shape)
    buffer = _buffer_of(what, parameters, stride)
    weights = list(parameters)
    if torch.is_autocast_enabled("cuda"):
        dtype = weights[0].dtype
        if dtype.is_floating_point and dtype not in (torch.float16, torch.float64):
            buffer, weights = _flat_copies(what, weights, stride, torch.float16)
        hx, cx, input_ = (_half(each) for each in (hx, cx, input_))
    _check(input_, hx, cx, weights)
    if buffer is None:
        warnings.warn(_NOT_FLAT, stacklevel=2)
    with torch.autocast("cuda", enabled=False):
        out, hy, cy, _, _ = torch._cudnn_rnn(input_, weights, stride, buffer, hx, cx, *shape, None)
    return (out, hy, cy) if mode == rnn.LSTM else (out, hy)


def _half(tensor: Any) -> Any:
    """What autocast does with other tensors than weights; bfloat16 becomes float16, too."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.float16)


def _check(input_: Any, hx: Any, cx: Any, weights: Sequence[Any]) -> None:
    """Refuse what the operator refuses."""
    for name, tensor in (("hidden", hx), ("cell", cx), *(("parameter", each) for each in weights)):
        if tensor is None:
            continue
        if tensor.dtype != input_.dtype:
            raise UntraceableError(
                f"{line_of_caller()}: a recurrent layer's input is of {input_.dtype}, but its "
                f"{name} of {tensor.dtype}; a GPU needs the same dtype, so convert one of them"
            )
        if tensor.device != input_.device:
            raise UntraceableError(
                f"{line_of_caller()}: a recurrent layer's input is on {input_.device}, but its "
                f"{name} on {tensor.device}; move both to 'cuda'"
            )
    for name, tensor in (("hx", hx), ("cx", cx)):
        if tensor is not None and not tensor.is_contiguous():
            raise UntraceableError(
                f"{line_of_caller()}: rnn: {name} is not contiguous, which cuDNN needs; pass "
                f"{name}.contiguous()"
            )


def _places(what: rnn.Layers) -> list[tuple[int, tuple[int, ...]]]:
    """Where each tensor of weights is in the buffer: all matrices before all biases."""
    shapes = list(enumerate(itertools.chain(*rnn.weight_shapes(what))))
    places, offset = {}, 0
    for number, shape in sorted(shapes, key=lambda each: len(each[1]) == 1):
        places[number] = offset, shape
        offset += torch.Size(shape).numel()
    return [places[number] for number, _ in shapes]


def _given(what: rnn.Layers, stride: int) -> list[tuple[int, tuple[int, ...]]]:
    """The places of those tensors that a layer has, which may lack biases."""
    places, full = _places(what), 5 if what.projected else 4
    if stride == full:
        return places
    return [place for number, place in enumerate(places) if number % full not in (2, 3)]


def _elements(what: rnn.Layers) -> int:
    return sum(torch.Size(shape).numel() for _, shape in _places(what))


def _buffer_of(what: rnn.Layers, parameters: Sequence[Any], stride: int) -> Any:
    """Return the buffer of which all parameters are parts, or None where they are not."""
    storage = parameters[0].untyped_storage()
    if storage.nbytes() < _elements(what) * parameters[0].element_size():
        return None
    for parameter, (offset, shape) in zip(parameters, _given(what, stride), strict=True):
        if parameter.untyped_storage()._cdata != storage._cdata or not parameter.is_contiguous():
            return None
        if parameter.storage_offset() != offset or tuple(parameter.shape) != shape:
            return None
    with torch.no_grad():
        return parameters[0].new_empty(0).set_(storage, 0, (_elements(what),))


def _flat_copies(
    what: rnn.Layers, parameters: Sequence[Any], stride: int, dtype: torch.dtype
) -> tuple[Any, list[Any]]:
    """Copy weights into a new buffer; gradients flow back to them."""
    with torch.no_grad():
        buffer = parameters[0].new_zeros(_elements(what), dtype=dtype)
        parts = [
            buffer.new_empty(0).set_(buffer.untyped_storage(), offset, shape)
            for offset, shape in _given(what, stride)
        ]
    for part, parameter in zip(parts, parameters, strict=True):
        part.copy_(parameter)
    return buffer, parts


def flatten_parameters(self: torch.nn.RNNBase) -> None:
    """What the method of this name does on a GPU: weights become parts of one new buffer."""
    weights = self._flat_weights
    if len(weights) != len(self._flat_weights_names):
        return
    if not all(isinstance(weight, torch.Tensor) and weight.is_cuda for weight in weights):
        return
    flat: list[Any] = list(weights)
    dtype = flat[0].dtype
    if dtype not in _FLATTENED or not torch.backends.cudnn.enabled:
        return
    places = {(each.untyped_storage()._cdata, each.storage_offset()) for each in flat}
    if len(places) != len(flat) or any(each.dtype != dtype for each in flat):
        return
    options = (self.hidden_size, self.proj_size, self.num_layers, self.batch_first, 0.0, True)
    shape = (_MODES[self.mode], *options, self.bidirectional, ())
    what = rnn.layers_of(torch.empty(1, 1, self.input_size, dtype=dtype, device="meta"), shape)
    with torch.no_grad():
        stride = len(flat) // (what.layers * what.directions)
        _, parts = _flat_copies(what, flat, stride, dtype)
        for weight, part in zip(flat, parts, strict=True):
            weight.set_(part)


def cudnn_rnn(recorder: Recorder, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``aten::_cudnn_rnn`` returns, for which fakes know no reserve."""
    input_, buffer, hx, cx = args[0], args[3], args[4], args[5]
    what = rnn.layers_of(input_, args[6:15])
    states = (what.layers * what.directions, what.batch)
    width = what.result * what.directions
    if what.packed:
        out = input_.new_empty(what.tokens, width)
    else:
        out = input_.new_empty(what.steps, what.batch, width)
    hy = hx.new_empty(*states, what.result)
    cy = hx.new_empty(0) if cx is None else cx.new_empty(*states, what.hidden)
    reserve = input_.new_empty(rnn.reserve_bytes(what) if what.trains else 0, dtype=torch.uint8)
    if buffer is None:
        buffer = input_.new_empty(_elements(what))
    recorder.record(args, kwargs, (out, hy, cy, reserve, buffer))
    if what.batch_first and not what.packed:
        out = out.transpose(0, 1)
    return out, hy, cy, reserve, buffer


def cudnn_rnn_backward(
    recorder: Recorder, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What ``aten::_cudnn_rnn_backward`` returns, for which there is nothing on fakes."""
    input_, stride, buffer, hx, cx = args[0], args[2], *args[3:6]
    what = rnn.layers_of(input_, args[10:19])
    if not what.trains:
        raise UntraceableError(
            f"{line_of_caller()}: cudnn RNN backward can only be called in training mode; leave "
            "eval() out, or disable torch.backends.cudnn for the layer"
        )
    swapped = what.batch_first and not what.packed
    dx = torch.empty_like(
        input_.transpose(0, 1) if swapped else input_, memory_format=torch.contiguous_format
    )
    dhx = torch.empty_like(hx)
    dcx = None if cx is None else torch.empty_like(cx)
    weights: list[Any] = []
    if args[21][3]:
        shared = stride >= 4
        gradient = torch.empty_like(buffer) if shared else None
        for offset, shape in _given(what, stride):
            if gradient is None:
                weights.append(buffer.new_empty(shape))
            else:
                part = gradient.narrow(0, offset, torch.Size(shape).numel())
                weights.append(part.view(shape))
        del gradient
    recorder.record(args, kwargs, (dx, dhx, dcx, *weights))
    return (dx.transpose(0, 1) if swapped else dx), dhx, dcx, weights
