"""Operators that run as others on a GPU than under fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from vramkit.errors import UntraceableError
from vramkit.estimate import _ctc, _cumprod, _engine, _known_masks, _packed, _recurrent, _sparse
from vramkit.estimate._attribution import line_of_caller
from vramkit.estimate._dtypes import check_alike
from vramkit.estimate._one_hot import one_hot
from vramkit.estimate._ops import _attention
from vramkit.estimate._ops import _recurrent as _cells
from vramkit.estimate._ops._plan import Plan
from vramkit.estimate._shadow import Shadows
from vramkit.estimate._target import Target

_aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class Runner(Protocol):
    """Runs an operator on fakes.

    Attributes:
        shadows: Values that are known without data.
        target: The GPU.
        may_guess: Whether results that depend on data may be guessed.
    """

    shadows: Shadows
    target: Target
    may_guess: bool

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run it, without the births of its results."""

    def record(self, args: Any, kwargs: Any, outputs: tuple[Any, ...]) -> None:
        """Record the births of its results, and what it allocates inside."""

    def follow(self, plan: Plan, outputs: tuple[Any, ...]) -> None:
        """Record what a plan says."""

    def assume(self, sentence: str) -> None:
        """Count what is assumed of the program."""

    def record_hidden(self, name: str, args: Any, kwargs: Any) -> None:
        """Record what an operator that returns its first argument allocates inside."""


# Returns the result, or NotImplemented where the operator runs as it is.
Rewrite = Callable[[Runner, Any, tuple[Any, ...], dict[str, Any]], Any]


# Set while C++ code runs that adds in place, except for tensor subclasses: scaled dot product
# attention by plain products, and linear layers of inputs with gaps.
_adds_in_place: ContextVar[bool] = ContextVar("_adds_in_place", default=False)


def _add(runner: Runner, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In place: gradients of which the engine holds the only reference, and attention's masks."""
    first, second = args[:2]
    if kwargs or len(args) != 2 or not isinstance(second, torch.Tensor):
        return NotImplemented
    if _adds_in_place.get():
        runner.run(_aten.add_.Tensor, (first, second), {})
        return first
    alike = first.shape == second.shape and first.dtype == second.dtype
    if not alike or not _engine.is_dense(first) or not _engine.from_engine():
        return NotImplemented
    if not _engine.holds_alone(first):
        return NotImplemented
    runner.run(_aten.add_.Tensor, (first, second), {})
    return first


def _in_place(inplace: Any, *, of: Sequence[str] = (), but: str | None = None) -> Rewrite:
    """Formulas of gradients that write into a fresh tensor: of some nodes, or of all but one."""

    def rewrite(runner: Runner, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _engine.from_engine() or (but and _engine.node_is(but)):
            return NotImplemented
        if of and not any(map(_engine.node_is, of)):
            return NotImplemented
        runner.run(inplace, args, kwargs)
        runner.record_hidden(inplace.name(), args, kwargs)
        return args[0]

    return rewrite


def _index_put(runner: Runner, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The indices of a gradient were compared with the size before."""
    if not _engine.from_engine():
        return NotImplemented
    out = _known_masks.index_put(runner, args, unsafe=True)
    if out is not NotImplemented:
        return out
    runner.run(_aten.index_put_.default, args, kwargs)
    runner.record_hidden("aten::_index_put_impl_", args, {**kwargs, "unsafe": True})
    return args[0]


def _logits_gradient(inplace: Any) -> Rewrite:
    """The gradient of binary cross entropy with logits is made in one tensor."""

    def rewrite(runner: Runner, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _engine.from_engine() or not _engine.node_is("BinaryCrossEntropyWithLogits"):
            return NotImplemented
        runner.run(inplace, args, kwargs)
        return args[0]

    return rewrite


def _index_put_in_place(runner: Runner, _: Any, args: tuple[Any, ...], __: dict[str, Any]) -> Any:
    return _known_masks.index_put(runner, args)


def _index(runner: Runner, _: Any, args: tuple[Any, ...], __: dict[str, Any]) -> Any:
    if _sparse.chooses_padding(args):
        return _sparse.without_padding(runner, args)
    return _known_masks.index(runner, args)


def _in_rows(runner: Runner, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gradients that are contiguous, whatever comes in."""
    out = runner.run(func, args, kwargs)
    single = isinstance(out, torch.Tensor)
    first, *others = (out,) if single else out
    if first is not None and not first.is_contiguous():
        first = runner.run(_aten.new_empty.default, (first, first.shape), {})
    runner.record(args, kwargs, (first, *others))
    return first if single else (first, *others)


def _pin(runner: Runner, _: Any, args: tuple[Any, ...], __: dict[str, Any]) -> Any:
    return runner.run(_aten.clone.default, args[:1], {})


def _is_pinned(*_: Any) -> bool:
    return False


def _no_result(*_: Any) -> None:
    """Fused updates of parameters in place, for which torch has no implementation on fakes."""


REWRITES: dict[str, Rewrite] = {
    "aten::_fused_sgd_": _no_result,
    "aten::_fused_sgd_.tensor_lr": _no_result,
    "aten::_fused_adagrad_": _no_result,
    "aten::add.Tensor": _add,
    "aten::index.Tensor": _index,
    "aten::index_put": _index_put,
    "aten::index_put_": _index_put_in_place,
    "aten::masked_select": _known_masks.masked_select,
    "aten::put": _in_place(_aten.put_.default),
    "aten::scatter.src": _in_place(_aten.scatter_.src),
    "aten::scatter_add": _in_place(_aten.scatter_add_.default, but="ScatterReduce"),
    "aten::index_add": _in_place(_aten.index_add_.default),
    "aten::logical_and": _in_place(_aten.logical_and_.default, of=("MaxBackward1", "MinBackward1")),
    "aten::sub.Tensor": _logits_gradient(_aten.sub_.Tensor),
    "aten::mul.Tensor": _logits_gradient(_aten.mul_.Tensor),
    "aten::div.Tensor": _logits_gradient(_aten.div_.Tensor),
    **dict.fromkeys(
        (
            *("aten::mse_loss_backward", "aten::smooth_l1_loss_backward"),
            *("aten::huber_loss_backward", "aten::_log_softmax_backward_data"),
            *("aten::native_layer_norm_backward", "aten::_fused_rms_norm_backward"),
        ),
        _in_rows,
    ),
    "aten::_pin_memory": _pin,
    "aten::is_pinned": _is_pinned,
    "aten::_pack_padded_sequence": _packed.pack,
    "aten::_ctc_loss": _ctc.forward,
    **dict.fromkeys(("aten::_cudnn_ctc_loss", "aten::_cudnn_ctc_loss.Tensor"), _ctc.by_cudnn),
    "aten::_cudnn_rnn": _recurrent.cudnn_rnn,
    "aten::_cudnn_rnn_backward": _recurrent.cudnn_rnn_backward,
}

# A build without CUDA decomposes these, as it has no kernel for them.
_WITH_CUDA_KERNEL = ("silu_backward", "mish_backward", "_fused_rms_norm")


@contextlib.contextmanager
def operators_of_cuda(
    target: Target,
    count: Callable[[str], None],
    known: Callable[[Any], torch.Tensor | None],
    assume: Callable[[str], None],
) -> Iterator[dict[str, Callable[..., Any]]]:
    """Let operators that choose by the device choose as on the target.

    Args:
        target: The GPU.
        count: Called with the name of each kernel of attention that is chosen.
        known: Returns the values of a tensor, or None where they depend on data.
        assume: Called with what is assumed of the program.

    Yields:
        What composite operators do on the target, by their names.
    """
    library = torch.library.Library("aten", "IMPL")
    try:
        for name in _WITH_CUDA_KERNEL:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CUDA"):
                library.impl(name, _never, "CUDA")
        for name, results in _cells.RESULTS.items():
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
                library.impl(name, results, "Meta")
        composites: dict[str, Callable[..., Any]] = {
            "linear": _linear,
            "one_hot": one_hot,
            "scaled_dot_product_attention": _attention_for(target, count),
            **_recurrent.composites(known),
            **_packed.composites(known),
            **_ctc.composites(known, assume),
            **_cumprod.composites(assume),
        }
        for name, composite in composites.items():
            for key in ("AutogradCUDA", "CUDA"):
                library.impl(name, composite, key)
        yield {f"aten::{name}": composite for name, composite in composites.items()}
    finally:
        library._destroy()


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("fake tensors never reach a kernel")


def _attention_for(target: Target, count: Callable[[str], None]) -> Callable[..., Any]:
    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        check_alike("aten::scaled_dot_product_attention", (query, key, value))
        mask = _float_mask(attn_mask, query)
        call = _attention.Attention(query, key, value, mask, dropout_p, is_causal, enable_gqa)
        kernel = _attention.choose(target, call)
        if kernel is None:
            raise UntraceableError(
                f"{line_of_caller()} computes attention, and no kernel of it that the program "
                f"allows takes these inputs on an {target.title}: PyTorch would fail there; allow "
                "SDPBackend.MATH besides in sdpa_kernel()"
            )
        count(kernel)
        inputs = (query, key, value)
        if kernel == "math":
            options = {"scale": scale, "enable_gqa": enable_gqa}
            return _products((*inputs, mask, dropout_p, is_causal, None), options)
        if kernel == "flash":
            return _flash(inputs, dropout_p, is_causal, scale)
        learns = torch.is_grad_enabled() and any(
            part is not None and part.requires_grad for part in (*inputs, mask)
        )
        if kernel == "cudnn":
            return _aten._scaled_dot_product_cudnn_attention(
                *inputs, mask, learns, dropout_p, is_causal, False, scale=scale
            )[0]
        if mask is not None:
            mask = _attention.efficient_mask(mask, query, key)
        return _aten._scaled_dot_product_efficient_attention(
            *inputs, mask, learns, dropout_p, is_causal, scale=scale
        )[0]

    return attention


def _linear(input_: Any, weight: Any, bias: Any = None) -> Any:
    with _adding_in_place():
        # PyTorch asks whether a view of the weight needs a gradient. It also does so in inference
        # mode, though not under a dispatch mode.
        folds = torch.is_inference_mode_enabled() and weight.requires_grad and input_.dim() > 2
        if not folds or input_.is_contiguous():
            return _aten.linear.default._op_dk(_COMPOSITE, input_, weight, bias)
        product = torch.mm(input_.reshape(-1, input_.shape[-1]), weight.t())
        product = product if bias is None else product.add_(bias)
        return product.view(*input_.shape[:-1], weight.shape[0])


def _products(args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    with _adding_in_place():
        return _aten._scaled_dot_product_attention_math(*args, **options)[0]


@contextlib.contextmanager
def _adding_in_place() -> Iterator[None]:
    token = _adds_in_place.set(True)
    try:
        yield
    finally:
        _adds_in_place.reset(token)


def _float_mask(mask: Any, query: Any) -> Any:
    if mask is None or mask.dtype != torch.bool:
        return mask
    options = {"dtype": query.dtype, "device": query.device}
    zero, nothing = (torch.scalar_tensor(value, **options) for value in (0.0, float("-inf")))
    return torch.where(mask, zero, nothing)


def _flash(inputs: tuple[Any, Any, Any], dropout: float, causal: bool, scale: Any) -> Any:
    """The kernel takes widths that are multiples of eight."""
    width = inputs[0].shape[-1]
    factor = _attention.scale_of(scale, inputs[0])
    if width % 8:
        pad = (0, 8 - width % 8)
        inputs = tuple(torch.nn.functional.pad(part, pad) for part in inputs)  # type: ignore[assignment]
    out = _aten._scaled_dot_product_flash_attention(*inputs, dropout, causal, False, scale=factor)
    return out[0][..., :width] if width % 8 else out[0]
