"""cuDNN's recurrent layers: what PyTorch and cuDNN allocate for them (ATen/native/cudnn/RNN.cpp).

The formulas of cuDNN's sizes were fitted to 350 calls recorded on an H200 with cuDNN 9.19. That of
the reserve is exact there; those of the workspaces are off by at most 1 % for small hidden states,
and otherwise by at most 6 % (LSTM, GRU) or 9 % (RNN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vramkit.estimate._ops._plan import Call, Drop, Give, Keep, Plan, Step, Take, size_of
from vramkit.estimate._target import Target

# cuDNN's numbers of the kinds of layers, and how many gates they have.
RNN_RELU, RNN_TANH, LSTM, GRU = range(4)
GATES = {RNN_RELU: 1, RNN_TANH: 1, LSTM: 4, GRU: 3}
# States of all elements of a sequence that the reserve holds for each layer and direction.
_KEPT = {RNN_RELU: 1, RNN_TANH: 1, LSTM: 5, GRU: 6}
_ALIGNMENT, _RESERVE_EXTRA = 32, 256
# Taken for each layer and direction, whatever their size.
_BASE = 8 << 20
# Weights of the terms of _terms(), by algorithm and kind of layer.
_STANDARD: dict[int, tuple[float, ...]] = {
    LSTM: (5.22, 9.31, 0.08, 1.08, 2.44, 1.01, 0.0),
    GRU: (4.61, 7.95, 0.91, 1.16, 4.22, 0.9, 0.0),
    RNN_TANH: (5.23, 7.0, 2.32, 0.8, 6.53, 0.17, 0.0),
}
_SMALL: dict[int, tuple[float, ...]] = {
    LSTM: (21.0, 9.04, 0.0, 0.99, 0.0, 1.0, 8.3),
    GRU: (16.35, 5.88, 0.0, 3.54, 0.0, 1.0, 14.31),
    RNN_TANH: (12.93, 6.0, 0.0, 2.06, 1.91, 1.0, 7.82),
}
_STATIC: dict[int, tuple[float, ...]] = {
    LSTM: (21.0, 0.0, 0.0, 1.0, 0.0, 1.0, 8.02),
    RNN_TANH: (13.17, 0.0, 0.0, 2.0, 0.0, 1.0, 0.41),
}
# Largest hidden state of the algorithm for small ones, in the forward and in the backward pass.
_SMALL_FORWARD = {RNN_RELU: 384, RNN_TANH: 384, LSTM: 192, GRU: 192}
_SMALL_BACKWARD = {RNN_RELU: 256, RNN_TANH: 256, LSTM: 128, GRU: 128}
_DROPOUT_BYTES_PER_THREAD = 24
# Inputs of a layer's step that _cudnn_rnn has before the names of the layer.
_FORWARD, _BACKWARD = 6, 10


@dataclass(frozen=True)
class Layers:
    """Recurrent layers and their input.

    Attributes:
        mode: cuDNN's number of their kind.
        hidden: Elements of the hidden state.
        projected: Elements of the projected hidden state; 0 for none.
        layers: How many.
        batch_first: Whether the input begins with the dimension of the batch.
        dropout: Probability of dropout between layers.
        trains: Whether cuDNN keeps what the backward pass needs.
        directions: 1 or 2.
        packed: Whether the input is packed.
        steps: Length of the sequences.
        batch: Number of sequences.
        tokens: Elements of all sequences.
        inputs: Features of an element.
        dtype: That of the input.
    """

    mode: int
    hidden: int
    projected: int
    layers: int
    batch_first: bool
    dropout: float
    trains: bool
    directions: int
    packed: bool
    steps: int
    batch: int
    tokens: int
    inputs: int
    dtype: torch.dtype

    @property
    def result(self) -> int:
        """Features of an element of the output, for one direction."""
        return self.projected or self.hidden


def layers_of(input_: torch.Tensor, options: Sequence[Any]) -> Layers:
    """Read the arguments that ``_cudnn_rnn`` and its backward pass have in common.

    Args:
        input_: The input.
        options: From ``mode`` to ``batch_sizes``.
    """
    mode, hidden, projected, layers, first, dropout, trains, both, sizes = options
    if sizes:
        steps, batch, tokens = len(sizes), sizes[0], input_.shape[0]
    else:
        steps, batch = input_.shape[1 if first else 0], input_.shape[0 if first else 1]
        tokens = steps * batch
    return Layers(
        *(int(mode), int(hidden), int(projected), layers, bool(first), dropout, bool(trains)),
        *(2 if both else 1, bool(sizes), steps, batch, tokens, input_.shape[-1], input_.dtype),
    )


def weight_shapes(what: Layers) -> list[list[tuple[int, ...]]]:
    """Shapes in the order of parameters, for each layer and direction, all biases included."""
    gates = GATES[what.mode] * what.hidden
    found = []
    for layer in range(what.layers):
        width = what.inputs if layer == 0 else what.result * what.directions
        shapes: list[tuple[int, ...]] = [(gates, width), (gates, what.result), (gates,), (gates,)]
        if what.projected:
            shapes.append((what.projected, what.hidden))
        found += [shapes] * what.directions
    return found


def reserve_bytes(what: Layers) -> int:
    """What cuDNN keeps from the forward pass for the backward pass.

    >>> options = (LSTM, 512, 0, 2, False, 0.0, True, False, ())
    >>> reserve_bytes(layers_of(torch.empty(128, 64, 512, device="meta"), options))
    184549632
    """
    sizes = what.tokens * what.directions * what.dtype.itemsize
    kept, between = _KEPT[what.mode] * what.hidden, what.layers - 1
    if what.projected:
        kept += what.hidden + what.projected
    size = _aligned(what.layers * kept * sizes) + _aligned(between * what.hidden * sizes)
    if what.dropout and what.trains:
        size += _aligned(between * what.tokens * what.hidden * what.directions // 8)
    return size + _RESERVE_EXTRA


def workspace_bytes(what: Layers, target: Target, *, forward: bool = True) -> int:
    """What cuDNN needs while it computes."""
    kind = RNN_TANH if what.mode == RNN_RELU else what.mode
    weights = _algorithm(what, target, forward)[kind]
    terms = _terms(what)
    size = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    return _BASE * what.layers * what.directions + _aligned(int(size * what.dtype.itemsize))


def dropout_bytes(target: Target) -> int:
    """The states of the random numbers, which PyTorch keeps."""
    threads = target.multi_processors * target.threads_per_multi_processor
    return threads * _DROPOUT_BYTES_PER_THREAD


def _terms(what: Layers) -> tuple[int, ...]:
    states, second = what.tokens * what.hidden, what.directions - 1
    wider = max(0, what.inputs - what.directions * what.hidden)
    matrices = sum(
        shape[0] * shape[1] for shapes in weight_shapes(what) for shape in shapes if len(shape) == 2
    )
    return (
        *(states, states * second, states * second * (what.layers - 1)),
        *(what.tokens * what.inputs, what.tokens * wider, matrices),
        what.batch * what.hidden * what.layers * what.directions,
    )


def _algorithm(what: Layers, target: Target, forward: bool) -> dict[int, tuple[float, ...]]:
    """PyTorch's choice of cuDNN's algorithm; cuDNN has none but the standard one for bfloat16."""
    plain = what.dtype in (torch.float64, torch.bfloat16)
    if what.projected or what.packed or plain:
        return _STANDARD
    if what.hidden <= (_SMALL_FORWARD if forward else _SMALL_BACKWARD)[what.mode]:
        return _SMALL
    return _STATIC if _persists(what, target) else _STANDARD


def _persists(what: Layers, target: Target) -> bool:
    """Tell whether the kernel that stays on the GPU serves half precision."""
    if what.dtype != torch.float16 or what.mode == GRU or what.layers * what.directions > 1:
        return False
    if what.hidden > 1024 or what.hidden % 128 or what.inputs % 128:
        return False
    major, minor = target.capability
    if major < 8 or minor == 6 or target.multi_processors < 98 or what.batch % 8:
        return False
    return what.batch <= 128 and (what.mode == LSTM or what.batch < 96 or what.hidden < 896)


def _forward(call: Call) -> Plan:
    input_, buffer = call.args[0], call.args[3]
    what = layers_of(input_, call.args[_FORWARD : _FORWARD + 9])
    plan: list[Step] = []
    if what.trains and what.dropout:
        plan.append(Keep("cuDNN dropout", dropout_bytes(call.target), once=True))
    copy = _copy_bytes(what, input_)
    plan += [Take(copy)] if copy else []
    plan += [Give(0), Give(1), Give(2)]
    plan += [Give(4)] if buffer is None else []
    plan += [Take(workspace_bytes(what, call.target)), Give(3)]
    return [*plan, Drop(2 if copy else 1)]


def _backward(call: Call) -> Plan:
    input_, hidden, cell, gradients = call.args[0], call.args[4], call.args[5], call.args[7:10]
    what = layers_of(input_, call.args[_BACKWARD : _BACKWARD + 9])
    space = Take(workspace_bytes(what, call.target, forward=False))
    # Gradients that nothing has computed are zeros.
    zeros: list[Step] = [
        Take(size_of(like))
        for like, gradient in zip((call.args[6], hidden, cell), gradients, strict=True)
        if like is not None and gradient is None
    ]
    input_copy, output_copy = _copy_bytes(what, input_), _copy_bytes(what, gradients[0])
    copies: list[Step] = [Take(size) for size in (input_copy, output_copy) if size]
    plan = [*zeros, *copies, Give(0), Give(1), Give(2), space, Drop(1 + len(copies))]
    if len(call.outputs) > 3:
        copies = [Take(input_copy)] if input_copy else []
        plan += [*copies, *_weights(call, space), *([Drop()] if copies else [])]
    return [*plan, Drop(len(zeros))] if zeros else plan


def _weights(call: Call, space: Take) -> list[Step]:
    """The gradients of weights are parts of one buffer, unless there are no biases."""
    given: list[Step] = [Give(place) for place in range(3, len(call.outputs))]
    if call.args[2] >= 4:
        return [given[0], space, Drop()]
    return [Take(size_of(call.args[3])), space, *given, Drop(2)]


def _copy_bytes(what: Layers, tensor: Any) -> int:
    """A batch-first tensor is copied, unless its memory already begins with the steps."""
    if tensor is None:
        return 0
    if what.batch_first and not what.packed:
        tensor = tensor.transpose(0, 1)
    return 0 if tensor.is_contiguous() else size_of(tensor)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


RULES = {
    "aten::_cudnn_rnn": _forward,
    "aten::_cudnn_rnn_backward": _backward,
}
